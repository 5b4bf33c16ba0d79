/// <reference lib="esnext.disposable" preserve="true" />

import { ChatAnswer } from "./chat-answer.js";
import { WorkerClient } from "./client.js";
import { toAnswer, toChatCall, toFileSource, toGenerateOptions, toImageCall } from "./convert.js";
import { fromWire, MgmError } from "./errors.js";
import { inspectFiles } from "./manifest.js";
import { toPixels } from "./messages.js";
import { OpenAI } from "./openai.js";
import type { CheckedCase, LoadCall, MemoryReport, ResultMessage } from "./protocol.js";
import { inspectBundle } from "./storage.js";
import { support, type Support, type SupportQuestion } from "./support.js";
import type {
  Answer, AttentionMap, ChatOptions, Delta, GeneratedImage, GenerateOptions, ImageInput, LoadOptions, Message, ModelInfo,
  ModelInspection, ModelSource, Precision, Progress,
} from "./types.js";

/** With properties that may be present and undefined. */
type Undefined<T> = { [K in keyof T]: T[K] | undefined };

/** A chat model, an image model, or both, on the GPU of this device. They run in a dedicated worker. */
export class Mgm {
  readonly #client: WorkerClient;
  #info: ModelInfo | undefined;
  /** The chat model with requests and responses in the format of OpenAI's API: `mgm.openai.chat.completions.create(body)`. */
  readonly openai: OpenAI = new OpenAI(this);

  private constructor(onProgress: LoadOptions["onProgress"]) {
    this.#client = new WorkerClient(onProgress);
  }

  /** Reports whether this browser can run models (of a given size), at which precisions, and if not, why. Never throws. */
  static support(question: SupportQuestion = {}): Promise<Support> {
    return support(question);
  }

  /**
   * Runs every kernel once on this device and compares the results with a reference. Use it to find the wrong kernel if answers make no
   * sense.
   *
   * @throws {@link MgmError} `unsupported-browser`, `no-adapter`, `device-lost`; the signal's reason if aborted.
   */
  static async selfCheck(options: { signal?: AbortSignal; onProgress?: (progress: Progress) => void } = {}): Promise<CheckedCase[]> {
    await requireSupport();
    const mgm = new Mgm(options.onProgress);
    try {
      return resultOf(await mgm.#client.call({ type: "check" }, options.signal), "checked").cases;
    } finally {
      mgm.dispose();
    }
  }

  /**
   * Returns a model's name and kind, and how much loading it downloads and stores, without loading it. For a model as it was released, reads
   * the headers of its files.
   */
  static async inspect(source: ModelSource, options: { precision?: Precision; signal?: AbortSignal } = {}): Promise<ModelInspection> {
    const place = toFileSource(source);
    if ("files" in place) return inspectFiles(new Map(place.files));
    const { url, hub } = place;
    const found = await inspectBundle(url, hub, options.signal);
    if (found || !hub) return found ?? { name: "", imageGeneration: false };
    const { precision, signal } = options;
    const mgm = new Mgm(undefined);
    try {
      const request = { type: "inspect", hub, ...(precision !== undefined && { precision }) } as const;
      return resultOf(await mgm.#client.call(request, signal), "inspected").model;
    } finally {
      mgm.dispose();
    }
  }

  /**
   * Loads a model. Files from a URL are stored on this device, and the next load needs no download.
   *
   * An image model (a bundle of Stable Diffusion XL) loads next to the chat model with `imageModel`, or alone as the source.
   *
   * @throws {@link MgmError} with its `code`; the signal's reason if aborted.
   */
  static async load(source: ModelSource, options: LoadOptions = {}): Promise<Mgm> {
    const { signal, onProgress, imageModel } = options;
    signal?.throwIfAborted();
    await orAbort(requireSupport(), signal);
    const mgm = new Mgm(onProgress);
    const loading = (async () => {
      await mgm.#load(source, "model", options);
      if (imageModel !== undefined) await mgm.#load(imageModel, "image-model", { signal, cache: options.cache });
    })();
    try {
      await orAbort(loading, signal);
      return mgm;
    } catch (error) {
      // An aborted worker finishes its current step; one that hangs is terminated.
      const timer = setTimeout(() => mgm.dispose(), ABORT_LIMIT);
      void loading.catch(() => undefined).then(() => {
        clearTimeout(timer);
        mgm.dispose();
      });
      throw error;
    }
  }

  /**
   * Loads an image model next to the chat model: a bundle, or the files of a folder in diffusers' layout. It replaces the image model that
   * is loaded. Its weights are uploaded to the GPU when an image needs them. If both models do not fit, they are loaded alternately.
   */
  async loadImageModel(source: ModelSource, options: Pick<LoadOptions, "precision" | "cache" | "signal"> = {}): Promise<void> {
    await this.#load(source, "image-model", options);
  }

  async #load(source: ModelSource, as: LoadCall["as"], options: Partial<Undefined<LoadOptions>>): Promise<void> {
    const { signal, cache = true, tune = true, int8 = true, precision, conversation, gpuMemory } = options;
    const call: LoadCall = {
      source: toFileSource(source),
      cache,
      as,
      tune,
      int8,
      ...(gpuMemory !== undefined && { gpuMemory }),
      options: { ...(precision !== undefined && { precision }), ...(conversation !== undefined && { conversation }) },
    };
    this.#info = resultOf(await this.#client.call({ type: "load", call }, signal), "loaded").info;
  }

  /** Properties of the loaded models. */
  get info(): ModelInfo {
    if (!this.#info) throw new MgmError("disposed", "no model is loaded");
    return this.#info;
  }

  /**
   * Answers the last message. Pass the whole conversation each time: the part that it shares with the previous call is in the KV cache.
   * Calls run one after the other.
   *
   * @returns The answer in progress: `await` it for the whole, or stream it with `for await`.
   */
  chat(messages: Message[], options: ChatOptions = {}): ChatAnswer {
    return new ChatAnswer((signal, onDelta) => this.#answer(messages, options, signal, onDelta), options.signal);
  }

  /** Generates an image. An abort takes effect between two steps. */
  async generate(options: GenerateOptions): Promise<GeneratedImage> {
    const known = toGenerateOptions(options);
    const { prompt, image, mask, onStep, signal } = known;
    if (typeof prompt !== "string" || prompt.trim() === "") throw new MgmError("invalid-argument", "the prompt is empty: generate({ prompt })");
    const call = { prompt, ...toImageCall({ previews: onStep !== undefined, ...known }) };
    const initial = {
      ...(image !== undefined && { image: await toPixels(image) }),
      ...(mask !== undefined && { mask: await toPixels(mask) }),
    };
    const request = { type: "generate", call, initial } as const;
    const result = await this.#client.call(request, signal, (message) => {
      if (message.type === "step") onStep?.(message.step);
    });
    signal?.throwIfAborted();
    return resultOf(result, "generated").image;
  }

  /** Returns the attention map of patch info mining: how much each part of an image contributes. It does not depend on the question. */
  async attentionMap(image: ImageInput, options: { signal?: AbortSignal } = {}): Promise<AttentionMap> {
    const result = await this.#client.call({ type: "attention-map", image: await toPixels(image) }, options.signal);
    options.signal?.throwIfAborted();
    return resultOf(result, "attention-map").map;
  }

  /**
   * Measures which kernels are the fastest for this model on this device (a few seconds). Uses them from then on, and stores the result
   * for later loads. `int8` includes kernels that quantise activations to 8 bits; they are less accurate.
   */
  async tune(options: { int8?: boolean; signal?: AbortSignal } = {}): Promise<void> {
    await this.#client.call({ type: "tune", int8: options.int8 ?? false }, options.signal);
    options.signal?.throwIfAborted();
  }

  /** Memory in use, in bytes. */
  async memory(): Promise<MemoryReport> {
    return resultOf(await this.#client.call({ type: "memory" }), "memory").memory;
  }

  /** Frees the GPU memory and terminates the worker. Calls in progress fail with `disposed`. The model's files stay on this device. */
  dispose(): void {
    this.#client.end("disposed", "the model was disposed");
  }

  /** The same as {@link Mgm.dispose}, for `await using`. */
  declare [Symbol.asyncDispose]: () => Promise<void>;

  static {
    // Compilers of `await using` look for this name in browsers without the symbol.
    const name = Symbol.asyncDispose ?? Symbol.for("Symbol.asyncDispose");
    this.prototype[name as typeof Symbol.asyncDispose] = async function () {
      this.dispose();
    };
  }

  async #answer(messages: Message[], options: ChatOptions, signal: AbortSignal, onDelta: (delta: Delta) => void): Promise<Answer> {
    const started = performance.now();
    let firstTokenMs = 0;
    const call = await toChatCall(messages, options, signal);
    const result = await this.#client.call({ type: "chat", call }, signal, (message) => {
      if (message.type === "text") {
        const { text, choice, logprobs } = message;
        onDelta({ type: "text", text, choice, ...(logprobs && { logprobs }) });
      }
      if (message.type === "step") onDelta({ type: "step", step: message.step });
      if (message.type === "first-token") firstTokenMs = performance.now() - started;
    });
    signal.throwIfAborted();
    const { report, image, imageError } = resultOf(result, "answered");
    const answer = toAnswer(report, firstTokenMs);
    if (image) {
      answer.image = image;
      onDelta({ type: "image", image });
    }
    if (imageError) {
      answer.imageError = fromWire(imageError);
      onDelta({ type: "image-error", error: answer.imageError });
    }
    return answer;
  }
}

/** Milliseconds for a worker to end an aborted load. */
const ABORT_LIMIT = 5_000;

/** The result of work, or the signal's reason as soon as it aborts. */
function orAbort<T>(work: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (!signal) return work;
  return new Promise((resolve, reject) => {
    const abort = () => reject(signal.reason as Error);
    signal.addEventListener("abort", abort);
    if (signal.aborted) abort();
    void work.then(resolve, reject).then(() => signal.removeEventListener("abort", abort));
  });
}

async function requireSupport(): Promise<void> {
  const { supported, reason, code } = await support();
  if (!supported) throw new MgmError(code ?? "unsupported-browser", reason ?? "WebGPU does not work in this browser");
}

/** A result, which has the expected type unless there is a bug. */
function resultOf<T extends ResultMessage["type"]>(result: ResultMessage, type: T): Extract<ResultMessage, { type: T }> {
  if (result.type !== type) throw new MgmError("internal", `the worker replied ${result.type} instead of ${type}`);
  return result as Extract<ResultMessage, { type: T }>;
}
