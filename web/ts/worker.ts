// The dedicated worker: downloads, the wasm module, the device. One call at a time; aborting is heard between steps.

import init, { Engine, Sha256, selfCheck } from "./wasm/mgm_web.js";
import { getBundle } from "./download.js";
import { wasmResponse } from "./kept.js";
import { keptTuning, keepTuning } from "./storage.js";
import { MgmError, toWire } from "./errors.js";
import type { ChatCall, CheckedCase, LoadCall, MemoryReport, Reply, Report, Request } from "./protocol.js";
import type { LookMap, ModelInfo, Progress } from "./types.js";

/** The least time between two reports of progress, in milliseconds. */
const PROGRESS_INTERVAL = 100;
/** How often a device may be lost during one answer. */
const RECOVERIES = 2;

declare const self: DedicatedWorkerGlobalScope;

const wasm = init({
  module_or_path: wasmResponse(import.meta.url, self.name, () => new URL("./mgm_web_bg.wasm", import.meta.url)),
});
/** Calls that are not answered yet. */
const calls = new Map<number, { abort: AbortController; begun: boolean }>();
/** The calls before, so that they go one after the other. */
let turn: Promise<unknown> = Promise.resolve();
/** What was loaded, to load it again when the device is lost: then there is no engine until the next call. */
let loaded: { call: LoadCall; files: Map<string, Blob>; engine: Engine | undefined } | undefined;

self.onmessage = ({ data }: MessageEvent<Request>) => {
  if (data.type === "abort") {
    const call = calls.get(data.id);
    call?.abort.abort();
    // One that waits for others need not wait to be told so.
    if (call && !call.begun) fail(data.id, new DOMException("aborted", "AbortError"));
    return;
  }
  const { id } = data;
  const call = { abort: new AbortController(), begun: false };
  calls.set(id, call);
  turn = turn.then(async () => {
    if (!calls.has(id)) return;
    call.begun = true;
    try {
      const answer = await handle(data, call.abort.signal);
      calls.delete(id);
      reply(answer);
    } catch (error) {
      fail(id, error);
    }
  });
};

function fail(id: number, error: unknown): void {
  calls.delete(id);
  reply({ id, type: "error", error: toWire(error) });
}

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
      return { id, type: "looked", map: await look(id, request.image, signal) };
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
    files = await download(id, call.source.url, call.cache, signal);
  } else {
    files = new Map(call.source.files);
  }
  const engine = await start(id, "load", call, files, signal);
  loaded = { call, files, engine };
  return JSON.parse(engine.info()) as ModelInfo;
}

function download(id: number, url: string, cache: boolean, signal: AbortSignal): Promise<Map<string, Blob>> {
  return getBundle(url, { cache, signal, newHash: () => new Sha256(), onProgress: reporter(id, "download") });
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

/** Does something with the model; when its device is lost, on a new one. */
async function withEngine<T>(id: number, signal: AbortSignal, work: (engine: Engine) => Promise<T>): Promise<T> {
  if (!loaded) throw new MgmError("invalid-argument", "no model is loaded");
  for (let recoveries = 0; ; recoveries++) {
    const engine = loaded.engine ?? (await recover(id, signal));
    try {
      return await work(engine);
    } catch (error) {
      if (toWire(error).code !== "device-lost") throw error;
      loaded.engine = undefined;
      engine.free();
      if (recoveries >= RECOVERIES) throw error;
    }
  }
}

/** The same model on a new device, from the files that are still here. */
async function recover(id: number, signal: AbortSignal): Promise<Engine> {
  if (!loaded) throw new MgmError("invalid-argument", "no model is loaded");
  const { call } = loaded;
  try {
    loaded.engine = await start(id, "recover", call, loaded.files, signal);
  } catch (error) {
    // Files that were deleted meanwhile come again from where they came from.
    if (toWire(error).code !== "io" || !("url" in call.source)) throw error;
    loaded.files = await download(id, call.source.url, call.cache, signal);
    loaded.engine = await start(id, "recover", call, loaded.files, signal);
  }
  return loaded.engine;
}

async function answer(id: number, call: ChatCall, signal: AbortSignal): Promise<Report> {
  // On a new device the answer goes on behind these.
  const begun: number[] = [];
  const report = await withEngine(id, signal, (engine) => {
    const request = JSON.stringify({ messages: call.messages, ...call.options, begun });
    return engine.answer(request, call.images, (name: string, value: unknown) => {
      if (name === "text") reply({ id, type: "text", text: value as string });
      if (name === "token" && begun.push(value as number) === 1) reply({ id, type: "first-token" });
      return !signal.aborted;
    });
  });
  return JSON.parse(report) as Report;
}

async function look(id: number, image: ImageData, signal: AbortSignal): Promise<LookMap> {
  const map: unknown = await withEngine(id, signal, (engine) => engine.look(image, () => !signal.aborted));
  const { size, weights, picture } = map as Omit<LookMap, "picture"> & { picture: Float32Array };
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
  const report = reporter(id, "tune");
  let measured = 0;
  const tuning = await withEngine(id, signal, (engine) =>
    engine.tune(() => {
      report("kernels", ++measured, Number.POSITIVE_INFINITY);
      return true;
    }),
  );
  signal.throwIfAborted();
  if (loaded?.call.cache) await keepTuning(tuning);
}

async function memory(): Promise<MemoryReport> {
  return { wasm: (await wasm).memory.buffer.byteLength, gpu: loaded?.engine?.gpuBytes() ?? 0 };
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
