// The dedicated worker: downloads, the wasm module, the device. One call at a time; aborting is heard between steps.

import init, { Engine, Sha256, selfCheck } from "./wasm/mgm_web.js";
import { getBundle } from "./download.js";
import { keptTuning, keepTuning } from "./storage.js";
import { MgmError, toWire } from "./errors.js";
import type { ChatCall, CheckedCase, LoadCall, MemoryReport, Reply, Report, Request } from "./protocol.js";
import type { LookMap, ModelInfo, Progress } from "./types.js";

/** The least time between two reports of progress, in milliseconds. */
const PROGRESS_INTERVAL = 100;
/** How often a device may be lost during one answer. */
const RECOVERIES = 2;

declare const self: DedicatedWorkerGlobalScope;

const wasm = init();
const aborts = new Map<number, AbortController>();
/** The calls before, so that they go one after the other. */
let turn: Promise<unknown> = Promise.resolve();
/** What was loaded, to load it again when the device is lost. */
let loaded: { call: LoadCall; files: Map<string, Blob>; engine: Engine } | undefined;

self.onmessage = ({ data }: MessageEvent<Request>) => {
  if (data.type === "abort") {
    aborts.get(data.id)?.abort();
    return;
  }
  const abort = new AbortController();
  aborts.set(data.id, abort);
  turn = turn
    .then(async () => {
      abort.signal.throwIfAborted();
      reply(await handle(data, abort.signal));
    })
    .catch((error: unknown) => reply({ id: data.id, type: "error", error: toWire(error) }))
    .finally(() => aborts.delete(data.id));
};

function reply(message: Reply): void {
  self.postMessage(message);
}

async function handle(request: Exclude<Request, { type: "abort" }>, signal: AbortSignal): Promise<Reply> {
  const { id } = request;
  switch (request.type) {
    case "load":
      return { id, type: "loaded", info: await load(id, request.call, signal) };
    case "chat":
      return { id, type: "answered", report: await answer(id, request.call, signal) };
    case "look":
      return { id, type: "looked", map: await look(request.image) };
    case "check":
      return { id, type: "checked", cases: await check(id, signal) };
    case "tune":
      await tune(id, signal);
      return { id, type: "tuned" };
    case "memory":
      return { id, type: "memory", memory: await memory() };
  }
}

/** Reports progress, not too often, but always its end. */
function reporter(id: number, phase: Progress["phase"]) {
  let last = 0;
  return (part: string, done: number, total: number) => {
    const now = performance.now();
    if (now - last < PROGRESS_INTERVAL && done < total) return;
    last = now;
    reply({ id, type: "progress", progress: { phase, part, loaded: done, total } });
  };
}

async function load(id: number, call: LoadCall, signal: AbortSignal): Promise<ModelInfo> {
  await wasm;
  let files: Map<string, Blob>;
  if ("url" in call.source) {
    files = await getBundle(call.source.url, {
      cache: call.cache,
      signal,
      newHash: () => new Sha256(),
      onProgress: reporter(id, "download"),
    });
  } else {
    files = new Map(call.source.files);
  }
  const engine = await start(id, "load", call, files, signal);
  loaded = { call, files, engine };
  return JSON.parse(engine.info()) as ModelInfo;
}

async function start(
  id: number,
  phase: Progress["phase"],
  call: LoadCall,
  files: Map<string, Blob>,
  signal: AbortSignal,
): Promise<Engine> {
  const subgroups = await askForSubgroups();
  const report = reporter(id, phase);
  let total = 0;
  let done = 0;
  const tuning = await keptTuning();
  const options = JSON.stringify({ ...call.options, subgroups, ...(tuning !== undefined && { tuning }) });
  return Engine.load(files, options, (name: string, bytes: number) => {
    if (name === "total") total = bytes;
    else done += bytes;
    report("weights", Math.min(done, total), total);
    return !signal.aborted;
  });
}

async function answer(id: number, call: ChatCall, signal: AbortSignal): Promise<Report> {
  if (!loaded) throw new MgmError("invalid-argument", "no model is loaded");
  const begun: number[] = [];
  for (let recoveries = 0; ; recoveries++) {
    const request = JSON.stringify({ messages: call.messages, ...call.options, begun });
    try {
      const report = await loaded.engine.answer(request, call.images, (name: string, value: unknown) => {
        if (name === "text") reply({ id, type: "text", text: value as string });
        if (name === "token" && begun.push(value as number) === 1) reply({ id, type: "first-token" });
        return !signal.aborted;
      });
      return JSON.parse(report) as Report;
    } catch (error) {
      if (toWire(error).code !== "device-lost" || recoveries >= RECOVERIES) throw error;
      // The files are still here: the same model on a new device goes on behind the last token.
      loaded.engine.free();
      loaded.engine = await start(id, "recover", loaded.call, loaded.files, signal);
    }
  }
}

async function look(image: ImageData): Promise<LookMap> {
  if (!loaded) throw new MgmError("invalid-argument", "no model is loaded");
  const { size, weights, picture } = (await loaded.engine.look(image)) as Omit<LookMap, "picture"> & { picture: Float32Array };
  const [x = 0, y = 0, width = 1, height = 1] = picture;
  return { size, weights, picture: { x, y, width, height } };
}

async function check(id: number, signal: AbortSignal): Promise<CheckedCase[]> {
  await wasm;
  const subgroups = await askForSubgroups();
  const report = reporter(id, "check");
  const cases = await selfCheck(subgroups, (_: string, part: number) => {
    report("kernels", part, 1);
    return !signal.aborted;
  });
  return JSON.parse(cases) as CheckedCase[];
}

/** Measures kernels for the loaded model; what is found is used at once, and by every later load. */
async function tune(id: number, signal: AbortSignal): Promise<void> {
  if (!loaded) throw new MgmError("invalid-argument", "no model is loaded");
  const report = reporter(id, "tune");
  let measured = 0;
  const tuning = await loaded.engine.tune(() => {
    report("kernels", ++measured, Number.POSITIVE_INFINITY);
    return true;
  });
  signal.throwIfAborted();
  if (loaded.call.cache) await keepTuning(tuning);
}

async function memory(): Promise<MemoryReport> {
  return { wasm: (await wasm).memory.buffer.byteLength, gpu: loaded?.engine.gpuBytes() ?? 0 };
}

/**
 * Lets devices have subgroups where the adapter has them, and says whether they do. wgpu's web backend does not know the
 * feature (https://github.com/gfx-rs/wgpu/issues/10146), but hands shaders on as they are.
 */
async function askForSubgroups(): Promise<boolean> {
  const adapter = await navigator.gpu.requestAdapter({ powerPreference: "high-performance" });
  if (!adapter?.features.has("subgroups")) return false;
  const prototype = GPUAdapter.prototype as GPUAdapter & { mgmAsksForSubgroups?: boolean };
  if (!prototype.mgmAsksForSubgroups) {
    const request = prototype.requestDevice;
    prototype.requestDevice = function (descriptor) {
      const features = new Set<string>(descriptor?.requiredFeatures);
      features.add("subgroups");
      return request.call(this, { ...descriptor, requiredFeatures: [...features] as GPUFeatureName[] });
    };
    prototype.mgmAsksForSubgroups = true;
  }
  return true;
}
