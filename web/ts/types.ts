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
  /** The part of the model that was worked on last: `tokenizer`, `vision`, `language`. */
  part: string;
  /** Bytes done. */
  loaded: number;
  /** Bytes in all. */
  total: number;
}

export interface LoadOptions {
  /** How the language model's weights are stored on the device. As they are in the files, if not given. */
  precision?: Precision;
  /** The conversation's template, where the files do not say it: `vicuna_v1`, `gemma`, `llama_3`, ... */
  conversation?: string;
  /** The most GPU memory to use, in bytes. */
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
  signal?: AbortSignal;
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
}

/** The next piece of an answer. The last has no text, and says how it ended. */
export interface Delta {
  text: string;
  finishReason?: FinishReason;
  usage?: Usage;
  timings?: Timings;
}

/** What is known of a loaded model. */
export interface ModelInfo {
  /** The browser's name for the adapter; often empty. */
  adapter: string;
  /** Whether the GPU is played by the CPU. */
  software: boolean;
  precision: Precision;
  /** Whether it can look at pictures. */
  sees: boolean;
  /** Positions of a conversation. */
  maxPositions: number;
  /** Bytes of the weights. */
  weightBytes: number;
  /** Bytes on the device after loading. */
  gpuBytes: number;
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
