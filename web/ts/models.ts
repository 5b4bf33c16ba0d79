// The models of a worker: one that answers, one that paints, or both on one device. Where they do not fit together they take
// turns; when the device is lost, they come again on another. Worker only.

import { Device, Engine, Painter, Sha256 } from "./wasm/mgm_web.js";
import { getBundle } from "./download.js";
import { MgmError, toWire } from "./errors.js";
import { identify, isPainter, type Manifest } from "./manifest.js";
import type { LoadCall } from "./protocol.js";
import { keptTuning } from "./storage.js";
import type { ModelInfo, PainterInfo, Progress } from "./types.js";

/** How often a device may be lost during one call. */
const RECOVERIES = 2;

const NO_PAINTER = "this model answers and does not paint: what paints is packed from a folder in diffusers' layout";

/** Who waits for what is done here. */
export interface Watch {
  signal: AbortSignal;
  report(phase: Progress["phase"]): (part: string, done: number, total: number) => void;
}

/** A model's files, what is known of it, and the model itself while it is there. */
interface Slot<M extends { free(): void; info(): string }, I> {
  call: LoadCall;
  files: Map<string, Blob>;
  name: string;
  model: M | undefined;
  info: I | undefined;
}

type Answering = Slot<Engine, EngineInfo>;
type Painting = Slot<Painter, PainterInfo>;
type EngineInfo = Pick<ModelInfo, "precision" | "sees" | "maxPositions" | "weightBytes">;

export class Models {
  #gpuMemory: number | undefined;
  #device: Device | undefined;
  /** A device was lost: what is loaded now is recovered. */
  #lost = false;
  #answering: Answering | undefined;
  #painting: Painting | undefined;

  /** Loads a model beside what is there, in the place of one of its kind. */
  async load(call: LoadCall, watch: Watch): Promise<ModelInfo> {
    const files = await filesOf(call, watch);
    this.#gpuMemory ??= call.gpuMemory;
    const { name, paints } = await identify(files);
    if (paints) {
      const slot: Painting = { call, files, name, model: undefined, info: undefined };
      await this.#withDevice(() => this.#painter(slot));
      this.#painting?.model?.free();
      this.#painting = slot;
    } else if (call.as === "painter") {
      throw new MgmError("invalid-argument", NO_PAINTER);
    } else {
      const slot: Answering = { call, files, name, model: undefined, info: undefined };
      await this.#withDevice(
        () => this.#engine(slot, watch),
        () => this.#putPainterAway(),
      );
      this.#answering?.model?.free();
      this.#answering = slot;
    }
    return this.#info();
  }

  /** Makes pipelines for the model that answers, as long as nobody waits. */
  async prepare(goOn: () => boolean): Promise<void> {
    await this.#answering?.model?.prepare(goOn);
  }

  /** Does something with the model that answers. */
  async answering<T>(watch: Watch, work: (engine: Engine) => Promise<T>): Promise<T> {
    const slot = this.#answering;
    if (!slot) {
      throw new MgmError("invalid-argument", this.#painting ? "this model paints, and does not answer" : "no model is loaded");
    }
    return this.#withDevice(
      async () => work(await this.#engine(slot, watch)),
      () => this.#putPainterAway(),
    );
  }

  /** Does something with the model that paints. */
  async painting<T>(watch: Watch, work: (painter: Painter) => Promise<T>): Promise<T> {
    const slot = this.needPainter();
    const paint = async () => {
      const painter = await this.#painter(slot);
      this.#makeRoom(painter.missingBytes(), () => this.#putEngineAway());
      return work(painter);
    };
    return this.#withDevice(
      () => withFiles(slot, watch, paint),
      () => this.#putEngineAway(),
    );
  }

  /** Whether there is one that paints. */
  get paints(): boolean {
    return this.#painting !== undefined;
  }

  /** The one that paints, which must be there. */
  needPainter(): Painting {
    if (this.#painting) return this.#painting;
    throw new MgmError("invalid-argument", "no model that paints is loaded: Mgm.load(url, { painter }) or loadPainter() does");
  }

  /** Whether what was loaded is kept on this device. */
  get kept(): boolean {
    return this.#answering?.call.cache ?? false;
  }

  /** Bytes on the device. */
  get bytes(): number {
    return this.#device?.bytes() ?? 0;
  }

  /** Does something on the device; on a new one when it is lost, and once more if `putAway` makes room for what did not fit. */
  async #withDevice<T>(work: () => Promise<T>, putAway: () => boolean = () => false): Promise<T> {
    for (let recoveries = 0, madeRoom = false; ; ) {
      try {
        const result = await work();
        this.#lost = false;
        return result;
      } catch (error) {
        const { code } = toWire(error);
        if (code === "out-of-memory" && !madeRoom && putAway()) {
          madeRoom = true;
          continue;
        }
        if (code !== "device-lost") throw error;
        this.#lose();
        if (++recoveries > RECOVERIES) throw error;
      }
    }
  }

  #lose(): void {
    this.#lost = true;
    for (const slot of [this.#answering, this.#painting]) {
      slot?.model?.free();
      if (slot) slot.model = undefined;
    }
    this.#device?.free();
    this.#device = undefined;
  }

  async #opened(): Promise<Device> {
    if (!this.#device) {
      const tuning = await keptTuning(deviceName);
      const subgroups = await askForSubgroups();
      const gpuMemory = this.#gpuMemory;
      this.#device = await Device.open(
        JSON.stringify({ subgroups, ...(tuning !== undefined && { tuning }), ...(gpuMemory !== undefined && { gpuMemory }) }),
      );
    }
    return this.#device;
  }

  async #engine(slot: Answering, watch: Watch): Promise<Engine> {
    if (slot.model) return slot.model;
    const load = async () => {
      const device = await this.#opened();
      const report = watch.report(this.#lost ? "recover" : "load");
      let [total, done] = [0, 0];
      return Engine.load(device, slot.files, JSON.stringify(slot.call.options), (name: string, bytes: number) => {
        if (name === "total") this.#makeRoom((total = bytes), () => this.#putPainterAway());
        else done += bytes;
        report("weights", Math.min(done, total), total);
        return !watch.signal.aborted;
      });
    };
    slot.model = await withFiles(slot, watch, load);
    slot.info = JSON.parse(slot.model.info()) as EngineInfo;
    return slot.model;
  }

  /** The model that paints. Its weights come onto the device when a picture needs them. */
  async #painter(slot: Painting): Promise<Painter> {
    if (slot.model) return slot.model;
    const { precision } = slot.call.options;
    const options = { name: slot.name, ...(precision !== undefined && { precision }) };
    slot.model = await Painter.open(await this.#opened(), slot.files, JSON.stringify(options));
    slot.info = JSON.parse(slot.model.info()) as PainterInfo;
    return slot.model;
  }

  /** Puts something away where so many bytes more are not to be had. */
  #makeRoom(bytes: number, putAway: () => boolean): void {
    const limit = this.#device?.limit();
    if (limit !== undefined && this.bytes + bytes > limit) putAway();
  }

  #putPainterAway(): boolean {
    this.#painting?.model?.release();
    return this.#painting?.model !== undefined;
  }

  /** The conversation is in the messages of the next call: only what was computed for it is gone. */
  #putEngineAway(): boolean {
    const engine = this.#answering?.model;
    if (!this.#answering || !engine) return false;
    this.#answering.model = undefined;
    engine.free();
    this.#device?.trim();
    return true;
  }

  #info(): ModelInfo {
    const device = JSON.parse(this.#device?.info() ?? "{}") as Pick<ModelInfo, "adapter" | "software">;
    const engine = this.#answering?.info;
    const painter = this.#painting?.info;
    const { precision = "f32", weightBytes = 0 } = engine ?? painter ?? {};
    return {
      ...device,
      gpuBytes: this.bytes,
      ...(engine ?? { precision, sees: false, maxPositions: 0, weightBytes }),
      chats: this.#answering !== undefined,
      ...(painter && { painter }),
    };
  }
}

async function filesOf({ source, cache, as }: LoadCall, { signal, report }: Watch): Promise<Map<string, Blob>> {
  if ("files" in source) return new Map(source.files);
  // Before gigabytes come that are of no use.
  const accept = (manifest: Manifest) => {
    if (as === "painter" && !isPainter(manifest)) throw new MgmError("invalid-argument", NO_PAINTER);
  };
  return getBundle(source.url, { cache, signal, accept, newHash: () => new Sha256(), onProgress: report("download") });
}

/** Does something with the files; those that were deleted meanwhile come again from where they came from. */
async function withFiles<T>(slot: Answering | Painting, watch: Watch, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (toWire(error).code !== "io" || !("url" in slot.call.source)) throw error;
    slot.files = await filesOf(slot.call, watch);
    slot.model?.free();
    slot.model = undefined;
    return work();
  }
}

function requestAdapter(): Promise<GPUAdapter | null> {
  return navigator.gpu.requestAdapter({ powerPreference: "high-performance" });
}

/** Tells one device from another, as far as browsers let us: the core sees neither vendor nor driver here. A new version of the
 *  browser may bring another compiler of shaders, so it counts too. */
export async function deviceName(): Promise<string> {
  const { vendor, architecture, device, description } = (await requestAdapter())?.info ?? {};
  return [vendor, architecture, device, description, navigator.userAgent].join("\n");
}

/**
 * Lets devices have subgroups where the adapter has them, and says whether they do. wgpu's web backend does not know the
 * feature (https://github.com/gfx-rs/wgpu/issues/10146), but hands shaders on as they are.
 */
export async function askForSubgroups(): Promise<boolean> {
  const adapter = await requestAdapter();
  if (!adapter?.features.has("subgroups")) return false;
  const prototype = GPUAdapter.prototype as GPUAdapter & { mgmAsksForSubgroups?: boolean };
  if (!prototype.mgmAsksForSubgroups) {
    const request = prototype.requestDevice;
    prototype.requestDevice = function (descriptor) {
      const features = new Set<string>(descriptor?.requiredFeatures);
      if (this.features.has("subgroups")) features.add("subgroups");
      return request.call(this, { ...descriptor, requiredFeatures: [...features] as GPUFeatureName[] });
    };
    prototype.mgmAsksForSubgroups = true;
  }
  return true;
}
