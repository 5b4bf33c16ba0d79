import type { MgmError } from "./errors.js";

/** How weights are stored on the device. */
export type Precision = "f32" | "f16" | "q8" | "q4";

/**
 * An image. Workers have no `HTML…Element`s. An `<img>` from another origin needs the attribute `crossorigin`, and its server must send
 * CORS headers.
 */
export type ImageInput =
  | Blob
  | ImageBitmap
  | ImageData
  | HTMLImageElement
  | HTMLCanvasElement
  | HTMLVideoElement
  | OffscreenCanvas;

/** A part of a message. The model sees a message's images before its text, whatever their order. */
export type ContentPart =
  | string
  | ImageInput
  | { type: "text"; text: string }
  | { type: "image_url"; image_url: string | ImageInput | { url: string | ImageInput } }
  | { type: "image"; image: ImageInput };

/** A message of a conversation, as in OpenAI's chat API. Only user messages can have images. */
export interface Message {
  role: "system" | "user" | "assistant";
  content: string | ContentPart[];
}

/** Progress of a load or another long call. */
export interface Progress {
  /**
   * - `download`: files to this device
   * - `import`: a checkpoint to this device, which becomes a bundle on the way; `loaded` counts bytes of the checkpoint
   * - `load`: weights to the GPU
   * - `recover`: the same after the GPU device was lost
   * - `check`: kernels of the self-check
   * - `tune`: measurements of kernels
   */
  phase: "download" | "import" | "load" | "recover" | "check" | "tune";
  /**
   * The part in progress: of a bundle (`tokenizer`, `vision`, `language`, `diffusion`), of a model (`weights`, `UNet`, …), or
   * `kernels`.
   */
  part: string;
  /** Bytes done; for `check` a fraction of 1, for `tune` the number of measurements. */
  loaded: number;
  /** The value of `loaded` at the end, if it is known: always except for `tune`. */
  total?: number;
}

/**
 * Where a model comes from:
 *
 * - the URL of a bundle's folder, which `mgm pack` wrote
 * - `"hf:owner/name"`, a repository of the Hugging Face Hub with a bundle, or with a model as it was released: a checkpoint of Mini-Gemini
 *   or Stable Diffusion XL in diffusers' layout. Such a model is quantised during the download, and stored as a bundle.
 *   `"hf:owner/name@revision/folder"` names a revision and a folder, `"hf:owner/name/file.gguf"` a GGUF file (see {@link Environment.hubUrl})
 * - files that the user chose: those of a bundle's or a checkpoint's folder, or one GGUF file
 */
export type ModelSource = string | URL | Iterable<File>;

/** Options of {@link Mgm.load}. */
export interface LoadOptions {
  /** An image model to load next to the chat model: see {@link Mgm.loadImageModel}. */
  imageModel?: ModelSource;
  /**
   * How the language model's weights are stored on the device. Default: as in the files; for a model as it was released, `q4`. Its bundle is
   * stored at this precision.
   */
  precision?: Precision;
  /** The conversation template, if the files do not name it: `vicuna_v1`, `gemma`, `llama_3`, … */
  conversation?: string;
  /** Maximum GPU memory to use, in bytes. If both models do not fit, the package loads them alternately. Default: no limit. */
  gpuMemory?: number;
  /**
   * `false` stores no model files on this device: the next load downloads them again. Where the browser refuses to store files, the model
   * loads as with `false` ({@link ModelInfo.stored}). Default: `true`.
   */
  cache?: boolean;
  /**
   * After the first load of a model on a GPU, the package measures the likeliest kernels for at most two seconds, while it answers no
   * question, and stores the result. `false` turns this off. {@link Mgm.tune} measures more kernels. Default: `true`.
   */
  tune?: boolean;
  /**
   * `false` never rounds activations to 8 bits. By default the package does so for quantised weights on GPUs with fast 8-bit dot
   * products, as llama.cpp does: slightly less accurate. Set by the first model that is loaded. Default: `true`.
   */
  int8?: boolean;
  /**
   * Called at most ten times a second, plus once at the end of each part. Later calls on the same object report here too:
   * {@link Mgm.loadImageModel}, {@link Mgm.tune}, and answers that recover from a lost device.
   */
  onProgress?: (progress: Progress) => void;
  signal?: AbortSignal;
}

/** Options of {@link Mgm.chat}. Names may be in snake case, as in OpenAI's API: `max_tokens`, `top_p`. Unknown ones are an error. */
export interface ChatOptions {
  /** Maximum number of generated tokens. Default: 512. */
  maxNewTokens?: number;
  /** Another spelling of `maxNewTokens`. */
  maxTokens?: number;
  /** Another spelling of `maxNewTokens`. */
  max_new_tokens?: number;
  /** Another spelling of `maxNewTokens`. */
  max_tokens?: number;
  /** Another spelling of `maxNewTokens`. */
  maxCompletionTokens?: number;
  /** Another spelling of `maxNewTokens`. */
  max_completion_tokens?: number;
  /** Sampling temperature; 0 is greedy. Default: 0.2. */
  temperature?: number;
  /** Sample only from the smallest set of most likely tokens whose probabilities sum to at least this value. Default: the model's. */
  topP?: number;
  /** Another spelling of `topP`. */
  top_p?: number;
  /** Sample only from the K most likely tokens; 0 for all. Default: 50. */
  topK?: number;
  /** Another spelling of `topK`. */
  top_k?: number;
  /** The same seed, messages and device give the same answer. Default: random. */
  seed?: number;
  /** Sample only from tokens with at least this share of the most likely token's probability; 0 for all. Default: 0. */
  minP?: number;
  /** Another spelling of `minP`. */
  min_p?: number;
  /**
   * Positive logits of tokens in the prompt and the answer are divided by this, the others multiplied: above 0, up to 2; 1 for none.
   * Default: 1.
   */
  repetitionPenalty?: number;
  /** Another spelling of `repetitionPenalty`. */
  repetition_penalty?: number;
  /** Subtracted from the logits of tokens that the answer has, from -2 to 2. Default: 0. */
  presencePenalty?: number;
  /** Another spelling of `presencePenalty`. */
  presence_penalty?: number;
  /** Subtracted from the logits of tokens for each time that the answer has them, from -2 to 2. Default: 0. */
  frequencyPenalty?: number;
  /** Another spelling of `frequencyPenalty`. */
  frequency_penalty?: number;
  /** Values from -100 to 100 by token id, added to the tokens' logits; -100 forbids a token. */
  logitBias?: Record<string, number>;
  /** Another spelling of `logitBias`. */
  logit_bias?: Record<string, number>;
  /** Report the log-probability of each token, and of this many of the likeliest tokens in its place, at most 20. Default: none. */
  topLogprobs?: number;
  /** Another spelling of `topLogprobs`. */
  top_logprobs?: number;
  /** Number of answers, each with its own random numbers. The conversation in the KV cache is that of the last. Default: 1. */
  n?: number;
  /** The answer ends before the first occurrence of one of these strings. */
  stop?: string | string[];
  /** Further tokens that end the answer. */
  stopTokenIds?: number[];
  /** Another spelling of `stopTokenIds`. */
  stop_token_ids?: number[];
  /** Tokens before the answer may end by a stop token or a stop string. Default: 0. */
  minTokens?: number;
  /** Another spelling of `minTokens`. */
  min_tokens?: number;
  /** Whether the model's stop tokens do not end the answer. Default: `false`. */
  ignoreEos?: boolean;
  /** Another spelling of `ignoreEos`. */
  ignore_eos?: boolean;
  /**
   * Control tokens in the messages (`<|im_start|>`, `</s>`) take effect, as in the reference. By default they are ordinary text: a message
   * cannot begin another turn. Default: false.
   */
  allowSpecialTokens?: boolean;
  /** Another spelling of `allowSpecialTokens`. */
  allow_special_tokens?: boolean;
  /** Images in the answer; needs an image model. */
  image?: ChatImageOptions;
  signal?: AbortSignal;
}

/**
 * Whether and how to generate an image in an answer. The chat model writes a description between `<h>` and `</h>`; the image model
 * generates the image from it.
 */
export interface ChatImageOptions extends ImageSettings {
  /**
   * - `auto` (default): ask for an image if the question contains the word "generate"
   * - `always`: ask for an image
   * - `never`: generate no image
   */
  mode?: "auto" | "always" | "never";
}

/** How an image is generated. Names may be in snake case, as in diffusers: `num_inference_steps`. Unknown ones are an error. */
export interface ImageSettings {
  /** What the image should not show. Default in conversations: the reference implementation's; otherwise none. */
  negativePrompt?: string;
  /** Another spelling of `negativePrompt`. */
  negative_prompt?: string;
  /**
   * Width in pixels, a multiple of {@link ImageModelInfo.multiple}. Default: the training size. With an initial image and neither width
   * nor height: the image's size, scaled down to about as many pixels as the model's images have.
   */
  width?: number;
  /** Height in pixels, a multiple of {@link ImageModelInfo.multiple}. Default: the training size. */
  height?: number;
  /** Number of denoising steps. Default: 50. */
  numInferenceSteps?: number;
  /** Another spelling of `numInferenceSteps`. */
  num_inference_steps?: number;
  /** Another spelling of `numInferenceSteps`. */
  steps?: number;
  /** Classifier-free guidance scale. 1 ignores the negative prompt and roughly halves the time per step. Default: 5. */
  guidanceScale?: number;
  /** Another spelling of `guidanceScale`. */
  guidance_scale?: number;
  /**
   * `euler`, `euler-a`, `ddim`, `dpm++-2m`, `dpm++-2m-sde`, `lcm` or `turbo`, optionally followed by `-karras`, `-exponential`,
   * `-leading`, `-trailing`, `-linspace` or `-zsnr` (zero terminal SNR). Default: the model's.
   */
  scheduler?: string;
  /** What the model's output is. Default: as the model declares. */
  predictionType?: "epsilon" | "v_prediction" | "sample";
  /**
   * Whether prompts have weights such as `(word:1.3)`, and are encoded in chunks if they exceed the text encoders' window. Default:
   * `auto`, on if a bracket has a number.
   */
  promptWeights?: "on" | "off" | "auto";
  /** The same seed gives the same image here, in `mgm generate`, and in diffusers with a CPU generator. Default: random. */
  seed?: number;
  /** Report a small preview image with each step. */
  previews?: boolean;
}

/** Options of {@link Mgm.generate}. */
export interface GenerateOptions extends ImageSettings {
  /** What the image should show. */
  prompt: string;
  /** An initial image (image to image). */
  image?: ImageInput;
  /** A mask of any size, scaled and cropped like the initial image: only its white areas are regenerated (inpainting). */
  mask?: ImageInput;
  /** How much of the initial image is replaced, above 0 and at most 1. Default: 0.6; with a mask 0.9999, as in diffusers. */
  strength?: number;
  /** Called after each step. */
  onStep?: (step: ImageStep) => void;
  signal?: AbortSignal;
}

/** Progress of an image. */
export interface ImageStep {
  /** Finished steps. */
  done: number;
  total: number;
  /** A preview with an eighth of the image's width and height. */
  preview?: ImageData;
}

/** A generated image. */
export interface GeneratedImage {
  pixels: ImageData;
  /** The image as a PNG file. It contains the settings in the format of other Stable Diffusion programs. */
  png: Blob;
  /** All settings, including defaults. */
  settings: {
    prompt: string;
    negativePrompt?: string;
    width: number;
    height: number;
    numInferenceSteps: number;
    guidanceScale: number;
    scheduler: string;
    seed: number;
    strength?: number;
    precision: Precision;
  };
  /** The end of the prompt that was cut off because it did not fit into the text encoders' window. */
  promptCut?: string;
  timings: {
    /** Mean duration of a step after the first, in milliseconds. */
    stepMs: number;
    /** Total duration, including loading, in milliseconds. */
    totalMs: number;
  };
}

/** Why an answer ended: `stop` at an end-of-sequence token or a stop string, `length` at the token limit or the end of the context. */
export type FinishReason = "stop" | "length";

/** Token counts of an answer. */
export interface Usage {
  /** Positions of the whole prompt, images included. */
  promptTokens: number;
  /** Positions of the prompt that were in the KV cache. */
  cachedTokens: number;
  /** Generated tokens of all answers. */
  completionTokens: number;
  /** Number of oldest turns without images that were dropped because the context was full. */
  droppedTurns: number;
}

/** Durations of an answer, in milliseconds. */
export interface Timings {
  /** Encoding new images. */
  visionMs: number;
  /** From the start of the prompt to the first token. */
  prefillMs: number;
  /** The tokens after the first. */
  decodeMs: number;
  /** From the call to the first token, including the wait for earlier calls. */
  firstTokenMs: number;
  /** Tokens per second after the first token. */
  tokensPerSecond: number;
}

/** A token and its log-probability. */
export interface TokenLogprob {
  id: number;
  /** The token's text; the name of a special token. Parts of characters are U+FFFD. */
  token: string;
  /** Natural logarithm of the token's probability: log-softmax of the model's logits, before bias, penalties and temperature. */
  logprob: number;
  /** The bytes that the token adds to the text, those of parts of characters too; `null` for special tokens. */
  bytes: number[] | null;
}

/** The log-probabilities of a generated token, and of the likeliest tokens in its place, best first. */
export interface TokenLogprobs extends TokenLogprob {
  topLogprobs: TokenLogprob[];
}

/** One of the answers to a question. */
export interface Choice {
  text: string;
  /** Generated token ids, including the one that ended the answer. */
  tokenIds: number[];
  finishReason: FinishReason;
  /** The stop string that ended the answer, or the token if it is one of `stopTokenIds`. */
  stopReason?: string | number;
  /** Log-probabilities of the tokens, if {@link ChatOptions.topLogprobs} asks for them. */
  logprobs?: TokenLogprobs[];
}

/** A whole answer: the first of {@link Answer.choices}, and what concerns all of them. */
export interface Answer extends Choice {
  /** All {@link ChatOptions.n} answers. */
  choices: Choice[];
  usage: Usage;
  timings: Timings;
  /** The generated image, if the answer has one. */
  image?: GeneratedImage;
  /** Why the image that the answer describes could not be generated. */
  imageError?: MgmError;
}

/**
 * An event of a streamed answer. `type` tells them apart; `done` is the last. `choice` is the number of the answer, from 0: with `n` above 1,
 * the answers follow one another. `logprobs` are those of the tokens since the last text.
 */
export type Delta =
  | { type: "text"; text: string; choice: number; logprobs?: TokenLogprobs[] }
  | { type: "step"; step: ImageStep }
  | { type: "image"; image: GeneratedImage }
  | { type: "image-error"; error: MgmError }
  | { type: "done"; answer: Answer };

/** The name and kind of a model that need not be loaded. */
export interface ModelSummary {
  /** The model's name; empty if its files do not contain one. */
  name: string;
  /** Whether it is an image model; otherwise it is a chat model. */
  imageGeneration: boolean;
}

/** What a model is, and what loading it takes: see {@link Mgm.inspect}. */
export interface ModelInspection extends ModelSummary {
  /** Bytes to download; 0 if the model is on this device. Absent for files that the user chose. */
  downloadBytes?: number;
  /** Bytes that stay stored on this device. */
  storedBytes?: number;
  /** The precision at which a model as it was released is stored. */
  precision?: string;
}

/** Properties of the loaded models. */
export interface ModelInfo {
  /** The model's name; empty if its files do not contain one. */
  name: string;
  /**
   * Whether the model's files are stored on this device, so that the next load needs no download. `false` with `{ cache: false }`, for files
   * that the user chose, and where the browser does not let the page store files, as in many private windows.
   */
  stored: boolean;
  /** The browser's name of the adapter; often empty. */
  adapter: string;
  /** Whether the adapter is a software (CPU) adapter. */
  software: boolean;
  /** Bytes on the device after loading. */
  gpuBytes: number;
  /** Whether a chat model is loaded. Otherwise `maxPositions` is 0 and `imageModel` has the details. */
  chat: boolean;
  precision: Precision;
  /** Whether the chat model accepts images. */
  vision: boolean;
  /** Length of the context, in tokens. */
  maxPositions: number;
  /** Bytes of the weights. */
  weightBytes: number;
  /** The image model, if one is loaded. */
  imageModel?: ImageModelInfo;
}

/** Properties of an image model. */
export interface ImageModelInfo {
  /** The model's name; empty if its files do not contain one. */
  name: string;
  /** Whether its files are stored on this device: see {@link ModelInfo.stored}. */
  stored: boolean;
  precision: Precision;
  /** Width of the training images, in pixels. */
  width: number;
  /** Height of the training images, in pixels. */
  height: number;
  /** Width and height of generated images must be multiples of this. */
  multiple: number;
  weightBytes: number;
}

/** The attention map of patch info mining over the padded square that the model sees. */
export interface AttentionMap {
  /** Cells along a side of the square. */
  size: number;
  /** `size * size` weights, row by row from the top. The weights in the window of one low-resolution token sum to 1. */
  weights: Float32Array;
  /** Position of the image in the square, as fractions of its side. Cropped parts lie outside the square. */
  image: { x: number; y: number; width: number; height: number };
}
