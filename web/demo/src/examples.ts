// What can be tried with one press, with the models that come with the page.

export interface Example {
  /** Beside the page. */
  picture?: string;
  question: string;
  /** Whether the question asks for a picture. */
  draws?: boolean;
}

/** From the world that Pocket knows: held-out combinations all. */
export const EXAMPLES: readonly Example[] = [
  { picture: "examples/zebras.png", question: "What does the text say?" },
  { picture: "examples/shark.png", question: "Read the number." },
  { picture: "examples/cupcake.png", question: "Describe the picture." },
  { question: "Draw a blue dog.", draws: true },
];

/** Buttons for them. */
export function exampleElements(act: (example: Example) => void): HTMLLIElement[] {
  return EXAMPLES.map((example) => {
    const button = document.createElement("button");
    button.type = "button";
    button.onclick = () => act(example);
    button.append(example.picture ? pictureElement(example.picture) : blankElement(), example.question);
    const item = document.createElement("li");
    item.append(button);
    return item;
  });
}

function pictureElement(address: string): HTMLImageElement {
  const picture = document.createElement("img");
  picture.src = address;
  picture.alt = "";
  return picture;
}

/** In the place of a picture that is still to be drawn. */
function blankElement(): HTMLElement {
  const blank = document.createElement("div");
  blank.className = "blank";
  blank.ariaHidden = "true";
  blank.textContent = "✎";
  return blank;
}

/** An example's picture, to be sent. */
export async function examplePicture({ picture }: Example): Promise<Blob[]> {
  if (!picture) return [];
  const response = await fetch(picture);
  if (!response.ok) throw new Error(`the example's picture could not be fetched: ${response.status}`);
  return [await response.blob()];
}
