import type { MgmError } from "./errors.js";

/** How weights are stored on the device. */
export type Precision = "f32" | "f16" | "q8" | "q4";

/** A picture, in any form that a page may have it. */
export type ImageInput =
  | Blob
  | ImageBitmap
  | ImageData
  | HTMLImageElement
  | HTMLCanvasElement
  | HTMLVideoElement
  | OffscreenCanvas;

/** A part of a message. Pictures stand before the text, wherever they are among the parts. */
export type ContentPart =
  | string
  | ImageInput
  | { type: "text"; text: string }
  | { type: "image_url"; image_url: string | ImageInput | { url: string | ImageInput } }
  | { type: "image"; image: ImageInput };

/** A message of a conversation, as in OpenAI's chat API. Only users' messages have pictures. */
export interface Message {
  role: "system" | "user" | "assistant";
  content: string | ContentPart[];
}

/** How far loading is. */
export interface Progress {
  /** `download`: files to this device; `load`: weights to the GPU; `recover`: the same after the device was lost;
   *  `check`: kernels, in parts of one; `tune`: measurements made, of which nobody knows how many there will be. */
  phase: "download" | "load" | "recover" | "check" | "tune";
  /** The part that was worked on last: of a bundle (`tokenizer`, `vision`, `language`, `diffusion`), of a model (`weights`, `UNet`, ...) or
   *  `kernels`. */
  part: string;
  /** Bytes done; for `check` and `tune` as said above. */
  loaded: number;
  /** Bytes in all. */
  total: number;
}

/** Where a model comes from: the address of a bundle's folder, or files that the user chose. */
export type ModelSource = string | URL | Iterable<File>;

export interface LoadOptions {
  /** A model that paints, to stand beside the one that answers: see {@link Mgm.loadPainter}. */
  painter?: ModelSource;
  /** How the language model's weights are stored on the device. As they are in the files, if not given. */
  precision?: Precision;
  /** The conversation's template, where the files do not say it: `vicuna_v1`, `gemma`, `llama_3`, ... */
  conversation?: string;
  /** The most GPU memory to use, in bytes. Where both do not fit, a model that answers and one that paints take turns. */
  gpuMemory?: number;
  /** `false` keeps nothing on this device: files come again next time. */
  cache?: boolean;
  /** Called at most ten times a second, also when a lost device is recovered from during an answer. */
  onProgress?: (progress: Progress) => void;
  signal?: AbortSignal;
}

export interface ChatOptions {
  /** The most tokens to generate; 512 if not given. */
  maxNewTokens?: number;
  /** Randomness; 0 always takes the likeliest token. 0.2 if not given. */
  temperature?: number;
  /** Samples only from the likeliest tokens that together have this probability. */
  topP?: number;
  /** Samples only from this many of the likeliest tokens; 0 for all. 50 if not given. */
  topK?: number;
  /** The same seed, messages and device give the same answer. Random if not given. */
  seed?: number;
  /**
   * Pictures in answers, where a model that paints is loaded. `"auto"`, which counts if not given, asks the model for a picture
   * where the question has the word "generate" in it; `true` asks for one; `false` paints none. What is asked for is a
   * description between `<h>` and `</h>` in the answer, from which the picture is painted. Settings for it can stand in place of `true`.
   */
  picture?: boolean | "auto" | ({ when?: "auto" | "always" } & PictureSettings);
  signal?: AbortSignal;
}

/** How a picture is painted. */
export interface PictureSettings {
  /** What is not to be seen. In conversations what the reference says, if not given. */
  negativePrompt?: string;
  /** Pixels in a row, a multiple of the model's `multiple`. What it was trained on, if not given. */
  width?: number;
  /** Rows. */
  height?: number;
  /** Steps of the scheduler; 50 if not given. */
  steps?: number;
  /** How closely to follow the prompt; 5 if not given. 1 leaves the negative prompt out and takes half the time. */
  guidance?: number;
  /** `euler`, `euler-a`, `ddim`, `dpm++-2m`, `dpm++-2m-sde`, `lcm`, `turbo`, and behind it `-karras`, `-exponential`, `-leading`,
   *  `-trailing` or `-linspace`. The model's own, if not given. */
  scheduler?: string;
  /** The same seed gives the same picture, here, in `mgm generate` and in diffusers with a CPU generator. Random if not given. */
  seed?: number;
  /** Whether steps come with a small picture of what can be seen. */
  previews?: boolean;
}

export interface GenerateOptions extends PictureSettings {
  /** What is to be seen. */
  prompt: string;
  /** A picture to begin with. */
  image?: ImageInput;
  /** How much of it is painted over, above 0 and at most 1; 0.6 if not given. */
  strength?: number;
  /** Called after each step. */
  onStep?: (step: PictureStep) => void;
  signal?: AbortSignal;
}

/** How far a picture is. */
export interface PictureStep {
  done: number;
  total: number;
  /** What can be seen, an eighth as large as the picture. */
  preview?: ImageData;
}

/** A painted picture. */
export interface Picture {
  pixels: ImageData;
  /** The same as a PNG file, which says what it was made with as other programs for Stable Diffusion do. */
  png: Blob;
  settings: Required<Omit<PictureSettings, "negativePrompt" | "previews">> & {
    prompt: string;
    negativePrompt?: string;
    strength?: number;
    precision: Precision;
  };
  /** The end of the prompt, where it found no room in the text encoders' window. */
  promptCut?: string;
  timings: {
    /** A step, the first one left out, in milliseconds. */
    stepMs: number;
    /** The whole picture, loading included. */
    totalMs: number;
  };
}

/** Why an answer ended. */
export type FinishReason = "stop" | "length";

/** Tokens that were used. */
export interface Usage {
  /** Positions of the whole prompt, pictures included. */
  promptTokens: number;
  /** How many of them were still in the cache from the answer before. */
  cachedTokens: number;
  completionTokens: number;
  /** The oldest turns without pictures that were left out, since the context was full. */
  droppedTurns: number;
}

/** How long an answer took, in milliseconds. */
export interface Timings {
  /** Looking at new pictures. */
  visionMs: number;
  /** From the prompt to the first token. */
  prefillMs: number;
  /** The other tokens. */
  decodeMs: number;
  /** From the call to the first token, waiting included. */
  firstTokenMs: number;
  /** Tokens a second after the first. */
  tokensPerSecond: number;
}

/** A whole answer. */
export interface Answer {
  text: string;
  /** The generated ids; the one that ended the answer is last. */
  tokenIds: number[];
  finishReason: FinishReason;
  usage: Usage;
  timings: Timings;
  /** What was painted for it. */
  picture?: Picture;
  /** Why nothing was, if it describes a picture. */
  pictureError?: MgmError;
}

/** The next piece of an answer. The last has no text, and says how it ended. */
export interface Delta {
  text: string;
  /** How far the answer's picture is. */
  step?: PictureStep;
  /** The answer's picture. */
  picture?: Picture;
  /** Why there is none. */
  pictureError?: MgmError;
  finishReason?: FinishReason;
  usage?: Usage;
  timings?: Timings;
}

/** What is known of what is loaded. */
export interface ModelInfo {
  /** The browser's name for the adapter; often empty. */
  adapter: string;
  /** Whether the GPU is played by the CPU. */
  software: boolean;
  /** Bytes on the device after loading. */
  gpuBytes: number;
  /** Whether it answers. One that only paints has no positions, and says the rest under `painter`. */
  chats: boolean;
  precision: Precision;
  /** Whether it can look at pictures. */
  sees: boolean;
  /** Positions of a conversation. */
  maxPositions: number;
  /** Bytes of the weights. */
  weightBytes: number;
  /** The model that paints, if there is one. */
  painter?: PainterInfo;
}

/** What is known of a model that paints. */
export interface PainterInfo {
  precision: Precision;
  /** Of the pictures that it was trained on. */
  width: number;
  height: number;
  /** Sides of pictures are multiples of this. */
  multiple: number;
  weightBytes: number;
}

/** What patch info mining weighed in the square that the model sees. */
export interface LookMap {
  /** Cells along a side of the square. */
  size: number;
  /** `size * size` weights, row by row from the top; those of the window of one low-resolution token sum to 1. */
  weights: Float32Array;
  /** Where the picture lies in the square, in parts of its side. What was cropped away lies beyond it. */
  picture: { x: number; y: number; width: number; height: number };
}
