// Questions to try with the models that are bundled with the page.

export interface Example {
  /** Address of an image, relative to the page. */
  image?: string;
  question: string;
  /** Whether the question asks for an image. */
  asksForImage?: boolean;
}

/** Scenes of Pocket's world that were held out of its training. */
export const EXAMPLES: readonly Example[] = [
  { image: "examples/zebras.png", question: "What does the text say?" },
  { image: "examples/shark.png", question: "Read the number." },
  { image: "examples/cupcake.png", question: "Describe the image." },
  { question: "Draw a blue dog.", asksForImage: true },
];
