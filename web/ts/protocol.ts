// What page and worker say to each other.

import type { WireError } from "./errors.js";
import type { LookMap, ModelInfo, Picture, PictureStep, Progress } from "./types.js";

/** Where a model's files are. */
export type Source = { url: string } | { files: [path: string, file: Blob][] };

export interface LoadCall {
  source: Source;
  cache: boolean;
  /** What the model is to be: what it is, or a painter beside another model. */
  as: "model" | "painter";
  gpuMemory?: number;
  /** JSON for the core. */
  options: { precision?: string; conversation?: string };
}

/** JSON for the core, but for the defaults that depend on who asks. */
export interface PictureCall {
  negativePrompt?: string;
  steps: number;
  guidance: number;
  width?: number;
  height?: number;
  scheduler?: string;
  seed: number;
  strength: number;
  previews: boolean;
}

export interface ChatCall {
  messages: { role: string; text: string; images: number }[];
  images: ImageData[];
  options: { maxNewTokens: number; temperature: number; topP?: number; topK: number; seed: number };
  /** Pictures in answers, if they are wanted. */
  picture?: { when: "auto" | "always"; settings: PictureCall };
}

export type Request =
  | { id: number; type: "load"; call: LoadCall }
  | { id: number; type: "chat"; call: ChatCall }
  | { id: number; type: "paint"; call: PictureCall & { prompt: string }; image?: ImageData }
  | { id: number; type: "look"; image: ImageData }
  | { id: number; type: "memory" }
  | { id: number; type: "check" }
  | { id: number; type: "tune"; int8: boolean }
  | { id: number; type: "abort" };

/** The core's report of an answer. */
export interface Report {
  text: string;
  tokenIds: number[];
  promptTokens: number;
  cachedTokens: number;
  droppedTurns: number;
  finishReason: "stop" | "length" | "cancelled";
  visionMs: number;
  prefillMs: number;
  decodeMs: number;
}

/** Memory of the worker, in bytes. */
export interface MemoryReport {
  wasm: number;
  gpu: number;
}

/** A kernel's case of the self-check. */
export interface CheckedCase {
  /** The kernel and its parameters. */
  case: string;
  /** Normalised mean square error against an f64 reference, if within the bound. */
  error: number | null;
  /** What is wrong, if it is not. */
  failure: string | null;
}

/** What is told while a call is under way. */
export type News =
  | { id: number; type: "progress"; progress: Progress }
  | { id: number; type: "text"; text: string }
  | { id: number; type: "first-token" }
  | { id: number; type: "step"; step: PictureStep };

/** How a call ends. */
export type Outcome =
  | { id: number; type: "loaded"; info: ModelInfo }
  | { id: number; type: "answered"; report: Report; picture?: Picture; pictureError?: WireError }
  | { id: number; type: "painted"; picture: Picture }
  | { id: number; type: "checked"; cases: CheckedCase[] }
  | { id: number; type: "looked"; map: LookMap }
  | { id: number; type: "tuned" }
  | { id: number; type: "memory"; memory: MemoryReport }
  | { id: number; type: "error"; error: WireError };

export type Reply = News | Outcome;
