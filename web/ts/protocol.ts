// Messages between the page and the worker.

import type { WireError } from "./errors.js";
import type { AttentionMap, GeneratedImage, ImageStep, ModelInfo, ModelInspection, Progress, TokenLogprobs } from "./types.js";

/** A folder, or a GGUF file, of a repository on the Hugging Face Hub. */
export interface HubSource {
  /** The hub's address, without a slash at its end. */
  endpoint: string;
  repository: string;
  /** Percent-encoded. */
  revision: string;
  /** Without slashes around it; empty for the whole repository. */
  folder: string;
  token?: string;
}

/** A bundle's address. With `hub`, the repository may have a model in another format instead. */
export interface UrlSource {
  url: string;
  hub?: HubSource;
}

/** Where a model's files are. */
export type FileSource = UrlSource | { files: [path: string, file: Blob][] };

export interface LoadCall {
  source: FileSource;
  cache: boolean;
  /** `model` accepts any model, `image-model` only an image model. */
  as: "model" | "image-model";
  gpuMemory?: number;
  /** Whether kernels may round activations to 8 bits. */
  int8: boolean;
  /** Whether to measure kernels after the first load on this device. */
  tune: boolean;
  /** Passed to the core as JSON. */
  options: { precision?: string; conversation?: string };
}

/** Passed to the core as JSON, which has the defaults. */
export interface ImageCall {
  negativePrompt?: string;
  steps?: number;
  guidanceScale?: number;
  width?: number;
  height?: number;
  scheduler?: string;
  predictionType?: string;
  promptWeights?: string;
  seed: number;
  strength?: number;
  previews?: boolean;
}

/** What an image starts from instead of noise, and a mask of where to regenerate it. */
export interface InitialImage {
  image?: ImageData;
  mask?: ImageData;
}

/** A message: its text, and the number of its images. */
export interface ChatCallMessage {
  role: string;
  text: string;
  images: number;
}

export interface ChatCall {
  messages: ChatCallMessage[];
  images: ImageData[];
  /** Passed to the core as JSON. */
  options: {
    maxNewTokens: number;
    temperature: number;
    topP?: number;
    topK: number;
    seed: number;
    minP?: number;
    repetitionPenalty?: number;
    presencePenalty?: number;
    frequencyPenalty?: number;
    logitBias?: [id: number, bias: number][];
    topLogprobs?: number;
    n?: number;
    stop?: string[];
    stopTokenIds?: number[];
    minTokens?: number;
    ignoreEos?: boolean;
    allowSpecialTokens?: boolean;
  };
  /** How to generate images; absent for an answer without. */
  image?: { mode: "auto" | "always"; settings: ImageCall };
}

/** The first message of a worker: where its files are. */
export interface StartMessage {
  type: "start";
  workerUrl: string;
  wasmUrl: string;
  /** Whether the worker's script comes from the asset cache. */
  fromCache: boolean;
}

export type Request =
  | { id: number; type: "load"; call: LoadCall }
  | { id: number; type: "chat"; call: ChatCall }
  | { id: number; type: "generate"; call: ImageCall & { prompt: string }; initial: InitialImage }
  | { id: number; type: "attention-map"; image: ImageData }
  | { id: number; type: "inspect"; hub: HubSource; precision?: string }
  | { id: number; type: "memory" }
  | { id: number; type: "check" }
  | { id: number; type: "tune"; int8: boolean }
  | { id: number; type: "abort" };

/** The core's report of one of the answers. */
export interface ChoiceReport {
  text: string;
  tokenIds: number[];
  finishReason: "stop" | "length" | "cancelled";
  stopReason?: string | number;
  /** Added by the worker. */
  logprobs?: TokenLogprobs[];
}

/** The core's report of the answers to a question. */
export interface AnswerReport {
  choices: [ChoiceReport, ...ChoiceReport[]];
  promptTokens: number;
  cachedTokens: number;
  droppedTurns: number;
  visionMs: number;
  prefillMs: number;
  decodeMs: number;
}

/** Memory in use, in bytes. */
export interface MemoryReport {
  /** Heap of the wasm module. */
  wasm: number;
  /** Buffers on the GPU. */
  gpu: number;
}

/** Result of the self-check for one kernel. */
export interface CheckedCase {
  /** The kernel and its parameters. */
  case: string;
  /** Normalised mean square error against an f64 reference; `null` if the case failed. */
  error: number | null;
  /** Why the case failed. */
  failure: string | null;
}

/** Sent while a call is in progress. */
export type ProgressMessage =
  | { id: number; type: "progress"; progress: Progress }
  | { id: number; type: "text"; text: string; choice: number; logprobs?: TokenLogprobs[] }
  /** Files are about to be stored on this device. */
  | { id: number; type: "storing" }
  | { id: number; type: "first-token" }
  | { id: number; type: "step"; step: ImageStep };

/** Ends a call. */
export type ResultMessage =
  | { id: number; type: "loaded"; info: ModelInfo }
  | { id: number; type: "answered"; report: AnswerReport; image?: GeneratedImage; imageError?: WireError }
  | { id: number; type: "generated"; image: GeneratedImage }
  | { id: number; type: "checked"; cases: CheckedCase[] }
  | { id: number; type: "attention-map"; map: AttentionMap }
  | { id: number; type: "inspected"; model: ModelInspection }
  | { id: number; type: "tuned" }
  | { id: number; type: "memory"; memory: MemoryReport }
  | { id: number; type: "error"; error: WireError };

/** From the worker. `started` is the first: the worker's script runs. */
export type Reply = { type: "started" } | ProgressMessage | ResultMessage;
