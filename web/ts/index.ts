/**
 * Mini-Gemini vision-language models in the browser, on WebGPU.
 *
 * ```ts
 * const mgm = await Mgm.load("https://example.org/models/mgm-2b/", { onProgress: console.log });
 * for await (const { text } of mgm.chat([{ role: "user", content: [
 *   { type: "image_url", image_url: "cat.jpg" },
 *   { type: "text", text: "What is this?" },
 * ]}])) console.log(text);
 * ```
 *
 * @module
 */

import { MgmError, type MgmErrorCode } from "./errors.js";
import { keptWorker } from "./kept.js";
import { identify } from "./manifest.js";
import { toPixels, unpack } from "./messages.js";
import type { ChatCall, CheckedCase, LoadCall, MemoryReport, News, Outcome, PictureCall, Reply, Report, Request, Source } from "./protocol.js";
import { bundleUrl, cache, type CachedBundle, identifyBundle } from "./storage.js";
import { support, type Support, type SupportQuestion } from "./support.js";
import type {
  Answer, ChatOptions, ContentPart, Delta, FinishReason, GenerateOptions, ImageInput, LoadOptions, LookMap, Message, ModelInfo, ModelSource,
  PainterInfo, Picture, PictureSettings, PictureStep, Precision, Progress, Timings, Usage,
} from "./types.js";

export { bundleUrl, cache, MgmError };
export type {
  Answer, CachedBundle, ChatOptions, CheckedCase, ContentPart, Delta, FinishReason, GenerateOptions, ImageInput, LoadOptions, LookMap,
  MemoryReport, Message, MgmErrorCode, ModelInfo, ModelSource, PainterInfo, Picture, PictureSettings, PictureStep, Precision, Progress, Support,
  SupportQuestion, Timings, Usage,
};

const NO_WORKER =
  "the package's worker could not be fetched, and there is no copy of it on this device";

/** The negative prompt apart, what pictures are painted with where nothing is said: as `mgm generate`. */
const PICTURE = { steps: 50, guidance: 5, strength: 0.6, previews: false };

type Handler = (reply: Reply) => void;
/** With properties that may be there and undefined. */
type Undefined<T> = { [K in keyof T]: T[K] | undefined };
/** A request without its number. */
type Call = Request extends infer R ? (R extends { id: number } ? Omit<R, "id"> : never) : never;

/** A model that answers, one that paints, or both, loaded on the GPU by a worker of their own. */
export class Mgm {
  #worker: Worker;
  /** What was sent before the worker was heard of, to be sent to another if it does not start. */
  #unheard: Request[] | undefined = [];
  readonly #handlers = new Map<number, Handler>();
  #calls = 0;
  #info: ModelInfo | undefined;
  #ended: MgmError | undefined;
  readonly #onProgress: LoadOptions["onProgress"];

  private constructor(onProgress: LoadOptions["onProgress"]) {
    this.#onProgress = onProgress;
    this.#worker = this.#listen(startWorker(), () => void this.#startKept());
  }

  #listen(worker: Worker, onMissing: () => void): Worker {
    worker.onmessage = ({ data }: MessageEvent<Reply>) => {
      this.#unheard = undefined;
      this.#handlers.get(data.id)?.(data);
    };
    worker.onerror = ({ message }) => {
      if (message) this.#end("internal", `the worker failed: ${message}`);
      else onMissing();
    };
    return worker;
  }

  /** When the worker's script does not come: the copy of it. */
  async #startKept(): Promise<void> {
    const missing = () => {
      if (navigator.onLine) this.#end("network", NO_WORKER);
      else this.#end("offline", `this device is offline, and ${NO_WORKER}`);
    };
    const worker = await keptWorker(new URL("./worker.js", import.meta.url).href);
    if (!worker || this.#ended) {
      worker?.terminate();
      missing();
      return;
    }
    this.#worker = this.#listen(worker, missing);
    for (const request of this.#unheard ?? []) worker.postMessage(request);
  }

  #post(request: Request): void {
    this.#unheard?.push(request);
    this.#worker.postMessage(request);
  }

  /** Whether this browser can run models (of this size), at which precisions, and why not. */
  static support(question: SupportQuestion = {}): Promise<Support> {
    return support(question);
  }

  /**
   * Runs every kernel once on this device and compares it with a reference: what to look at when answers make no sense.
   *
   * @throws MgmError `unsupported-browser`, `device-lost`; the signal's reason if aborted.
   */
  static async selfCheck(options: { signal?: AbortSignal; onProgress?: (progress: Progress) => void } = {}): Promise<CheckedCase[]> {
    const able = await support();
    if (!able.supported) throw new MgmError("unsupported-browser", able.reason ?? "WebGPU does not work here");
    const mgm = new Mgm(options.onProgress);
    try {
      return expect(await mgm.#call({ type: "check" }, options.signal), "checked").cases;
    } finally {
      mgm.dispose();
    }
  }

  /** The models that are kept on this device. */
  static readonly cache = cache;

  /** What a model is, before it is loaded: its name, if it tells it, and whether it paints. */
  static identify(source: ModelSource, options: { signal?: AbortSignal } = {}): Promise<{ name: string; paints: boolean }> {
    const place = toSource(source);
    return "files" in place ? identify(new Map(place.files)) : identifyBundle(place.url, options.signal);
  }

  /**
   * Loads a model: from the address of a bundle's folder, or from files that the user chose (a bundle's, a checkpoint's, or
   * one GGUF file). Files from an address are kept on this device; the next time they are not asked for again.
   *
   * A model that paints (a bundle of Stable Diffusion XL) is loaded beside it with `painter`, or by itself, as the source.
   *
   * @throws MgmError with its `code`; the signal's reason if aborted.
   */
  static async load(source: ModelSource, options: LoadOptions = {}): Promise<Mgm> {
    const { signal, onProgress, painter } = options;
    signal?.throwIfAborted();
    const able = await support();
    if (!able.supported) throw new MgmError("unsupported-browser", able.reason ?? "WebGPU does not work here");
    const mgm = new Mgm(onProgress);
    try {
      await mgm.#load(source, "model", options);
      if (painter !== undefined) await mgm.#load(painter, "painter", { signal, cache: options.cache });
      return mgm;
    } catch (error) {
      mgm.dispose();
      throw error;
    }
  }

  /**
   * Loads a model that paints beside the one that answers, or in the place of another that paints: from the address of a bundle's
   * folder, or from files that the user chose (a bundle's, or a folder's in diffusers' layout). Its weights come onto the GPU when a picture
   * needs them; where both models do not fit, they take turns.
   */
  async loadPainter(source: ModelSource, options: Pick<LoadOptions, "precision" | "cache" | "signal"> = {}): Promise<void> {
    await this.#load(source, "painter", options);
  }

  async #load(source: ModelSource, as: LoadCall["as"], options: Partial<Undefined<LoadOptions>>): Promise<void> {
    const { signal, cache = true, precision, conversation, gpuMemory } = options;
    const call: LoadCall = {
      source: toSource(source),
      cache,
      as,
      ...(gpuMemory !== undefined && { gpuMemory }),
      options: { ...(precision !== undefined && { precision }), ...(conversation !== undefined && { conversation }) },
    };
    const reply = await this.#call({ type: "load", call }, signal);
    this.#info = expect(reply, "loaded").info;
  }

  /** What is known of the models. */
  get info(): ModelInfo {
    if (!this.#info) throw new MgmError("disposed", "the model is not loaded");
    return this.#info;
  }

  /**
   * Answers the last of the messages. What the prompt has in common with the one before is not computed again, so pass the
   * whole conversation each time. Calls wait for each other.
   */
  chat(messages: Message[], options: ChatOptions = {}): ChatAnswer {
    return new ChatAnswer((signal, onDelta) => this.#answer(messages, options, signal, onDelta), options.signal);
  }

  /** Paints a picture. Stopping is heard between steps. */
  async generate(options: GenerateOptions): Promise<Picture> {
    const { prompt, image, strength, onStep, signal } = options;
    if (typeof prompt !== "string" || prompt.trim() === "") throw new MgmError("invalid-argument", "a prompt says what is to be seen: generate({ prompt })");
    const call = { prompt, ...toPictureCall({ previews: onStep !== undefined, ...options }), ...(strength !== undefined && { strength }) };
    const request = { type: "paint", call, ...(image !== undefined && { image: await toPixels(image) }) } as const;
    const reply = await this.#call(request, signal, (news) => {
      if (news.type === "step") onStep?.(news.step);
    });
    signal?.throwIfAborted();
    return expect(reply, "painted").picture;
  }

  /** What patch info mining weighs in a picture, whatever is asked about it. */
  async look(image: ImageInput, options: { signal?: AbortSignal } = {}): Promise<LookMap> {
    const reply = await this.#call({ type: "look", image: await toPixels(image) }, options.signal);
    options.signal?.throwIfAborted();
    return expect(reply, "looked").map;
  }

  /**
   * Measures which kernels are the fastest for this model on this device (a few seconds), uses them from now on, and keeps the
   * result for later loads. With `int8` also kernels that round activations to 8 bits, which are less exact.
   */
  async tune(options: { int8?: boolean; signal?: AbortSignal } = {}): Promise<void> {
    await this.#call({ type: "tune", int8: options.int8 ?? false }, options.signal);
    options.signal?.throwIfAborted();
  }

  /** Memory in use. */
  async memory(): Promise<MemoryReport> {
    return expect(await this.#call({ type: "memory" }), "memory").memory;
  }

  /** Frees the GPU and ends the worker. Calls that are under way fail with `disposed`. */
  dispose(): void {
    this.#end("disposed", "the model was disposed of");
  }

  #end(code: MgmErrorCode, message: string): void {
    if (this.#ended) return;
    this.#ended = new MgmError(code, message);
    this.#worker.terminate();
    for (const [id, handler] of [...this.#handlers]) handler({ id, type: "error", error: { code, message } });
  }

  async #answer(
    messages: Message[],
    options: ChatOptions,
    signal: AbortSignal,
    onDelta: (delta: Delta) => void,
  ): Promise<Answer> {
    const started = performance.now();
    let firstTokenMs = 0;
    const { maxNewTokens = 512, temperature = 0.2, topP, topK = 50, seed, picture = "auto" } = options;
    const call: ChatCall = {
      ...(await unpack(messages, signal)),
      options: {
        maxNewTokens,
        temperature,
        topK,
        ...(topP !== undefined && { topP }),
        seed: seed ?? Math.floor(Math.random() * Number.MAX_SAFE_INTEGER),
      },
      ...(picture !== false && { picture: toPictures(picture) }),
    };
    const reply = await this.#call({ type: "chat", call }, signal, (news) => {
      if (news.type === "text") onDelta({ text: news.text });
      if (news.type === "step") onDelta({ text: "", step: news.step });
      if (news.type === "first-token") firstTokenMs = performance.now() - started;
    });
    signal.throwIfAborted();
    const answered = expect(reply, "answered");
    const { picture: painted, pictureError: error } = answered;
    const more = { ...(painted && { picture: painted }), ...(error && { pictureError: new MgmError(error.code, error.message) }) };
    if (painted ?? error) onDelta({ text: "", ...more });
    return { ...toAnswer(answered.report, firstTokenMs), ...more };
  }

  /** Sends a call to the worker and waits for its last reply. */
  #call(call: Call, signal?: AbortSignal, onNews?: (news: News) => void): Promise<Outcome> {
    return new Promise((resolve, reject) => {
      if (this.#ended) {
        reject(this.#ended);
        return;
      }
      const id = ++this.#calls;
      const abort = () => this.#post({ id, type: "abort" });
      const settle = () => {
        this.#handlers.delete(id);
        signal?.removeEventListener("abort", abort);
      };
      this.#handlers.set(id, (reply) => {
        if (reply.type === "error") {
          settle();
          reject(signal?.aborted ? (signal.reason as Error) : new MgmError(reply.error.code, reply.error.message));
        } else if (reply.type === "progress") {
          this.#onProgress?.(reply.progress);
        } else if (reply.type === "text" || reply.type === "first-token" || reply.type === "step") {
          onNews?.(reply);
        } else {
          settle();
          resolve(reply);
        }
      });
      signal?.addEventListener("abort", abort, { once: true });
      this.#post({ ...call, id } as Request);
      if (signal?.aborted) abort();
    });
  }
}

/**
 * An answer that is being made: an async iterable of its pieces, to be iterated once. Leaving the loop early stops it.
 */
export class ChatAnswer implements AsyncIterable<Delta> {
  readonly #pieces: Delta[] = [];
  readonly #stop = new AbortController();
  readonly #answer: Promise<Answer>;
  #over = false;
  #wake: () => void = () => undefined;

  /** @internal */
  constructor(run: (signal: AbortSignal, onDelta: (delta: Delta) => void) => Promise<Answer>, signal?: AbortSignal) {
    const either = signal ? AbortSignal.any([signal, this.#stop.signal]) : this.#stop.signal;
    this.#answer = run(either, (delta) => {
      this.#pieces.push(delta);
      this.#wake();
    });
    const end = () => {
      this.#over = true;
      this.#wake();
    };
    this.#answer.then(end, end);
  }

  /** The whole answer, once it is there. */
  finished(): Promise<Answer> {
    return this.#answer;
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Delta, void> {
    try {
      for (;;) {
        const piece = this.#pieces.shift();
        if (piece) {
          yield piece;
        } else if (this.#over) {
          const { finishReason, usage, timings } = await this.#answer;
          yield { text: "", finishReason, usage, timings };
          return;
        } else {
          await new Promise<void>((resolve) => (this.#wake = resolve));
        }
      }
    } finally {
      // Of no effect on an answer that is over.
      this.#stop.abort();
    }
  }
}

/** A call's outcome, which is of one type unless there is a bug. */
function expect<T extends Outcome["type"]>(outcome: Outcome, type: T): Extract<Outcome, { type: T }> {
  if (outcome.type !== type) throw new MgmError("internal", `the worker replied ${outcome.type} in the place of ${type}`);
  return outcome as Extract<Outcome, { type: T }>;
}

function toPictures(picture: Exclude<ChatOptions["picture"], false | undefined>): NonNullable<ChatCall["picture"]> {
  const { when = "always", ...settings } = typeof picture === "object" ? picture : { when: picture === true ? "always" : "auto" } as const;
  return { when, settings: toPictureCall(settings) };
}

function toPictureCall(settings: PictureSettings): PictureCall {
  const { negativePrompt, width, height, steps = PICTURE.steps, guidance = PICTURE.guidance, scheduler, previews = PICTURE.previews } = settings;
  return {
    steps,
    guidance,
    // Such seeds are told and typed again, so they are short.
    seed: settings.seed ?? Math.floor(Math.random() * 2 ** 32),
    strength: PICTURE.strength,
    previews,
    ...(negativePrompt !== undefined && { negativePrompt }),
    ...(width !== undefined && { width }),
    ...(height !== undefined && { height }),
    ...(scheduler !== undefined && { scheduler }),
  };
}

function toAnswer(report: Report, firstTokenMs: number): Answer {
  const { text, tokenIds, promptTokens, cachedTokens, droppedTurns, visionMs, prefillMs, decodeMs } = report;
  const after = tokenIds.length - 1;
  return {
    text,
    tokenIds,
    finishReason: report.finishReason === "stop" ? "stop" : "length",
    usage: { promptTokens, cachedTokens, completionTokens: tokenIds.length, droppedTurns },
    timings: {
      visionMs,
      prefillMs,
      decodeMs,
      firstTokenMs,
      tokensPerSecond: decodeMs > 0 ? (after * 1000) / decodeMs : 0,
    },
  };
}

function toSource(source: string | URL | Iterable<File>): Source {
  if (typeof source === "string" || source instanceof URL) return { url: bundleUrl(source) };
  return { files: [...source].map((file) => [file.webkitRelativePath || file.name, file]) };
}

/** Starts the worker beside this module, wherever that came from. */
function startWorker(): Worker {
  const url = new URL("./worker.js", import.meta.url);
  if (url.origin === globalThis.location.origin || url.protocol === "blob:") {
    return new Worker(new URL("./worker.js", import.meta.url), { type: "module", name: "mgm" });
  }
  // Workers must be of the page's origin; what they import need not.
  const loader = new Blob([`import ${JSON.stringify(url.href)};`], { type: "text/javascript" });
  const address = URL.createObjectURL(loader);
  return new Worker(address, { type: "module", name: "mgm" });
}
