// The loaded models of a worker: a chat model, an image model, or both on one device. If both do not fit, they are loaded
// alternately. If the device is lost, they are loaded again on another. For the worker.

import { ChatModel, Device, ImageModel, Sha256 } from "./wasm/mgm_web.js";
import { type Bundle, getBundle } from "./download.js";
import { hubHeaders, isGguf } from "./env.js";
import { MgmError, toWire } from "./errors.js";
import { importModel } from "./import-model.js";
import { inspectFiles, type Manifest, summary } from "./manifest.js";
import type { LoadCall } from "./protocol.js";
import { hasBundle, storedTuning, storeTuning } from "./storage.js";
import type { ImageModelInfo, ModelInfo, ModelSummary, Progress } from "./types.js";
import { deviceId, enableSubgroups, hasNativeDots } from "./webgpu.js";

/** Time to measure kernels when a model is loaded for the first time, in milliseconds. */
const MEASURING_TIME = 2000;

/** Maximum number of device losses during one call. */
const MAX_RECOVERIES = 2;

const NOT_AN_IMAGE_MODEL = "this is a chat model, not an image model: image models are packed from a folder in diffusers' layout";

/** A call's signal and progress reports, for the work that it starts. */
export interface CallContext {
  signal: AbortSignal;
  /** Starts to report a phase. */
  reporter(phase: Progress["phase"]): (part: string, done: number, total?: number) => void;
  /** Called when files are about to be stored on this device. */
  onStoring(): void;
}

/** A model's files and properties, and the model while it is loaded. */
interface Slot<M extends { free(): void; info(): string }, I> {
  call: LoadCall;
  files: Map<string, Blob>;
  /** Whether the files are stored on this device. */
  stored: boolean;
  name: string;
  model: M | undefined;
  info: I | undefined;
  /** Time that is left to measure kernels, in milliseconds; `undefined` if they are not to be measured any more. */
  measuringTime?: number | undefined;
}

type ChatSlot = Slot<ChatModel, ChatModelInfo>;
type ImageSlot = Slot<ImageModel, Omit<ImageModelInfo, "name" | "stored">>;
type ChatModelInfo = Pick<ModelInfo, "precision" | "vision" | "maxPositions" | "weightBytes">;

export class Models {
  #gpuMemory: number | undefined;
  #int8: boolean | undefined;
  #device: Device | undefined;
  /** Whether a device was lost and the next load is a recovery. */
  #isLost = false;
  #chat: ChatSlot | undefined;
  #image: ImageSlot | undefined;

  /** Loads a model. It replaces a loaded one of its kind. */
  async load(call: LoadCall, context: CallContext): Promise<ModelInfo> {
    const { files, stored } = await filesOf(call, context);
    this.#gpuMemory ??= call.gpuMemory;
    this.#int8 ??= call.int8;
    const { name, imageGeneration } = await inspectFiles(files);
    if (imageGeneration) {
      const slot: ImageSlot = { call, files, stored, name, model: undefined, info: undefined };
      await this.#withDevice(() => this.#loadImageModel(slot));
      this.#image?.model?.free();
      this.#image = slot;
    } else if (call.as === "image-model") {
      throw new MgmError("invalid-argument", NOT_AN_IMAGE_MODEL);
    } else {
      const slot: ChatSlot = { call, files, stored, name, model: undefined, info: undefined, measuringTime: MEASURING_TIME };
      await this.#withDevice(
        () => this.#loadChatModel(slot, context),
        () => this.#evictImageModel(),
      );
      this.#chat?.model?.free();
      this.#chat = slot;
    }
    return this.#info();
  }

  /** Compiles pipelines of the chat model, and measures kernels for it, until `mayContinue` says otherwise. */
  async prepare(mayContinue: () => boolean): Promise<void> {
    const slot = this.#chat;
    if (!slot?.model) return;
    await slot.model.prepare(mayContinue);
    if (!slot.call.tune || slot.measuringTime === undefined || !mayContinue()) return;
    const started = performance.now();
    const { measuringTime } = slot;
    // Not again after an error, such as a lost device.
    slot.measuringTime = undefined;
    let storing = Promise.resolve();
    const store = async (tuning: string) => {
      if (slot.call.cache) await storeTuning(await deviceId(), tuning);
    };
    try {
      await slot.model.measureKernels(measuringTime, (name: string, value: unknown) => {
        if (name === "store") storing = storing.then(() => store(value as string)).catch(() => undefined);
        return mayContinue();
      });
      await slot.model.prepare(mayContinue);
    } catch (error) {
      if (toWire(error).code !== "cancelled") throw error;
      slot.measuringTime = measuringTime - (performance.now() - started);
    } finally {
      await storing;
    }
  }

  /** Runs work with the chat model, and again on another device if the first is lost. */
  async withChatModel<T>(context: CallContext, work: (model: ChatModel) => Promise<T>): Promise<T> {
    const slot = this.#chat;
    if (!slot) {
      throw new MgmError("invalid-argument", this.#image ? "this is an image model: it cannot chat" : "no model is loaded");
    }
    return this.#withDevice(
      async () => work(await this.#loadChatModel(slot, context)),
      () => this.#evictImageModel(),
    );
  }

  /** Runs work with the image model, and again on another device if the first is lost. */
  async withImageModel<T>(context: CallContext, work: (model: ImageModel) => Promise<T>): Promise<T> {
    const slot = this.requireImageModel();
    const run = async () => {
      const model = await this.#loadImageModel(slot);
      this.#makeSpace(model.missingBytes(), () => this.#evictChatModel());
      return work(model);
    };
    return this.#withDevice(
      () => withFiles(slot, context, run),
      () => this.#evictChatModel(),
    );
  }

  get hasImageModel(): boolean {
    return this.#image !== undefined;
  }

  /** The image model; fails if there is none. */
  requireImageModel(): ImageSlot {
    if (this.#image) return this.#image;
    throw new MgmError("invalid-argument", "no image model is loaded: use Mgm.load(source, { imageModel }) or loadImageModel()");
  }

  /** Whether the chat model may store files on this device. */
  get mayStore(): boolean {
    return this.#chat?.call.cache ?? false;
  }

  /** Bytes on the device. */
  get bytes(): number {
    return this.#device?.bytes() ?? 0;
  }

  /** Runs work on the device. Repeats it on a new device if the device is lost, and once more if `evict` freed memory for it. */
  async #withDevice<T>(work: () => Promise<T>, evict: () => boolean = () => false): Promise<T> {
    for (let recoveries = 0, evicted = false; ; ) {
      try {
        const result = await work();
        this.#isLost = false;
        return result;
      } catch (error) {
        const { code } = toWire(error);
        if (code === "out-of-memory" && !evicted && evict()) {
          evicted = true;
          continue;
        }
        if (code !== "device-lost") throw error;
        this.#dropDevice();
        if (++recoveries > MAX_RECOVERIES) throw error;
      }
    }
  }

  #dropDevice(): void {
    this.#isLost = true;
    for (const slot of [this.#chat, this.#image]) {
      slot?.model?.free();
      if (slot) slot.model = undefined;
    }
    this.#device?.free();
    this.#device = undefined;
  }

  async #openDevice(): Promise<Device> {
    if (!this.#device) {
      const tuning = await storedTuning(deviceId);
      const [subgroups, nativeDots] = [await enableSubgroups(), await hasNativeDots()];
      const gpuMemory = this.#gpuMemory;
      this.#device = await Device.open(
        JSON.stringify({ subgroups, nativeDots, int8: this.#int8, ...(tuning !== undefined && { tuning }), ...(gpuMemory !== undefined && { gpuMemory }) }),
      );
    }
    return this.#device;
  }

  async #loadChatModel(slot: ChatSlot, context: CallContext): Promise<ChatModel> {
    if (slot.model) return slot.model;
    const load = async () => {
      const device = await this.#openDevice();
      const report = context.reporter(this.#isLost ? "recover" : "load");
      let [total, done] = [0, 0];
      return ChatModel.load(device, slot.files, JSON.stringify(slot.call.options), (name: string, bytes: number) => {
        if (name === "total") this.#makeSpace((total = bytes), () => this.#evictImageModel());
        else done += bytes;
        report("weights", Math.min(done, total), total);
        return !context.signal.aborted;
      });
    };
    slot.model = await withFiles(slot, context, load);
    slot.info = JSON.parse(slot.model.info()) as ChatModelInfo;
    return slot.model;
  }

  /** Opens the image model. Its weights are loaded when an image needs them. */
  async #loadImageModel(slot: ImageSlot): Promise<ImageModel> {
    if (slot.model) return slot.model;
    const { precision } = slot.call.options;
    const options = { name: slot.name, ...(precision !== undefined && { precision }) };
    slot.model = await ImageModel.open(await this.#openDevice(), slot.files, JSON.stringify(options));
    slot.info = JSON.parse(slot.model.info()) as Omit<ImageModelInfo, "name" | "stored">;
    return slot.model;
  }

  /** Evicts a model if `bytes` more would exceed the memory limit. */
  #makeSpace(bytes: number, evict: () => boolean): void {
    const limit = this.#device?.limit();
    if (limit !== undefined && this.bytes + bytes > limit) evict();
  }

  #evictImageModel(): boolean {
    this.#image?.model?.release();
    return this.#image?.model !== undefined;
  }

  /** The next call passes the whole conversation, so that only its KV cache is lost. */
  #evictChatModel(): boolean {
    const model = this.#chat?.model;
    if (!this.#chat || !model) return false;
    this.#chat.model = undefined;
    model.free();
    this.#device?.trim();
    return true;
  }

  #info(): ModelInfo {
    const device = JSON.parse(this.#device?.info() ?? "{}") as Pick<ModelInfo, "adapter" | "software">;
    const chat = this.#chat?.info;
    const image = this.#image?.info && { name: this.#image.name, stored: this.#image.stored, ...this.#image.info };
    const { precision = "f32", weightBytes = 0 } = chat ?? image ?? {};
    return {
      name: (this.#chat ?? this.#image)?.name ?? "",
      stored: (this.#chat ?? this.#image)?.stored ?? false,
      ...device,
      gpuBytes: this.bytes,
      ...(chat ?? { precision, vision: false, maxPositions: 0, weightBytes }),
      chat: chat !== undefined,
      ...(image && { imageModel: image }),
    };
  }
}

async function filesOf({ source, cache, as, options }: LoadCall, { signal, reporter, onStoring }: CallContext): Promise<Bundle> {
  if ("files" in source) return { files: new Map(source.files), stored: false };
  const { url, hub } = source;
  // Refuse a model of the wrong kind before its gigabytes are downloaded.
  const accept = ({ imageGeneration }: ModelSummary) => {
    if (as === "image-model" && !imageGeneration) throw new MgmError("invalid-argument", NOT_AN_IMAGE_MODEL);
  };
  if (hub && !(await hasBundle(url, hub, signal))) {
    const precision = isGguf(hub) ? undefined : options.precision;
    return importModel(url, hub, { cache, signal, accept, precision, onProgress: reporter("import"), onStoring });
  }
  const acceptManifest = (manifest: Manifest) => accept(summary(manifest));
  return getBundle(url, {
    cache, signal, accept: acceptManifest, headers: hubHeaders(hub), newHash: () => new Sha256(),
    onProgress: reporter("download"), onStoring,
  });
}

/** Runs work with a model's files. If they were deleted from this device, downloads them and repeats the work. */
async function withFiles<T>(slot: ChatSlot | ImageSlot, context: CallContext, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (toWire(error).code !== "io" || !("url" in slot.call.source)) throw error;
    Object.assign(slot, await filesOf(slot.call, context));
    slot.model?.free();
    slot.model = undefined;
    return work();
  }
}
