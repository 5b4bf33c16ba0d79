// The dedicated worker: runs calls one at a time. A queued call is aborted immediately, a running one between steps.
// The worker is a classic script, so that it works with bundlers, cross-origin URLs and blob URLs.

import init, { chatNegativePrompt, imagePrompt, selfCheck } from "./wasm/mgm_web.js";
import { wasmBytes, wasmResponse } from "./asset-cache.js";
import { MgmError, toWire, type WireError } from "./errors.js";
import { generateImage } from "./generate-image.js";
import { ImageRequests } from "./image-requests.js";
import { inspectImport } from "./import-model.js";
import { type CallContext, Models } from "./models.js";
import type {
  AnswerReport, ChatCall, CheckedCase, ImageCall, InitialImage, MemoryReport, ProgressMessage, Reply, Request, ResultMessage, StartMessage,
} from "./protocol.js";
import { storeTuning } from "./storage.js";
import type { AttentionMap, GeneratedImage, ImageStep, Progress, TokenLogprob, TokenLogprobs } from "./types.js";
import { adaptWebGpu, deviceId, enableSubgroups, pollResults } from "./webgpu.js";

/** Minimum interval between progress messages, in milliseconds. */
const PROGRESS_INTERVAL = 100;

declare const self: DedicatedWorkerGlobalScope;

let wasm: ReturnType<typeof init>;
/** Pending calls: no result has been posted yet. */
const calls = new Map<number, { abort: AbortController; isRunning: boolean }>();
/** Resolves when all calls so far have finished: calls run one after the other. */
let queue: Promise<unknown> = Promise.resolve();
const models = new Models();
const imageRequests = new ImageRequests();

/** A running call. */
interface Context extends CallContext {
  id: number;
}

self.onmessage = ({ data }: MessageEvent<StartMessage | Request>) => {
  if (data.type === "start") start(data);
  else if (data.type === "abort") abort(data.id);
  else enqueue(data);
};
post({ type: "started" });

function start(message: StartMessage): void {
  adaptWebGpu();
  pollResults();
  wasm = startWasm(message);
  // Each call reports the failure; this avoids an unhandled rejection.
  wasm.catch(() => undefined);
}

async function startWasm(message: StartMessage): ReturnType<typeof init> {
  try {
    return await init({ module_or_path: wasmResponse(message) });
  } catch (error) {
    if (error instanceof MgmError) throw error;
  }
  const bytes = await wasmBytes(message);
  try {
    return await init({ module_or_path: bytes });
  } catch (cause) {
    const reason = `the package's wasm module ${message.wasmUrl} did not start: ${String(cause)}`;
    // Firefox says "blocked by CSP".
    const isPolicy = /content security|unsafe-eval|\bCSP\b/i.test(reason);
    throw isPolicy
      ? new MgmError("unsupported-browser", `${reason} (allow 'wasm-unsafe-eval' in the policy's script-src)`, { cause })
      : new MgmError("internal", `${reason} (do the worker and the module belong to the same version?)`, { cause });
  }
}

function abort(id: number): void {
  const call = calls.get(id);
  call?.abort.abort();
  if (call && !call.isRunning) fail(id, new DOMException("aborted", "AbortError"));
}

function enqueue(request: Exclude<Request, { type: "abort" }>): void {
  const { id } = request;
  const call = { abort: new AbortController(), isRunning: false };
  calls.set(id, call);
  queue = queue.then(async () => {
    try {
      await wasm;
      if (!calls.has(id)) return;
      call.isRunning = true;
      const { signal } = call.abort;
      const onStoring = () => postProgress({ id, type: "storing" });
      const result = await handle(request, { id, signal, onStoring, reporter: (phase) => reporter(id, phase) });
      calls.delete(id);
      post(result);
      // Compiles pipelines and measures kernels until the next call arrives, which also detects a lost device.
      if (calls.size === 0) await models.prepare(() => calls.size === 0).catch(() => undefined);
    } catch (error) {
      fail(id, error);
    }
  });
}

function fail(id: number, error: unknown): void {
  if (calls.delete(id)) post({ id, type: "error", error: toWire(error) });
}

function post(reply: Reply): void {
  self.postMessage(reply);
}

const postProgress = (message: ProgressMessage): void => post(message);

async function handle(request: Exclude<Request, { type: "abort" }>, context: Context): Promise<ResultMessage> {
  const { id } = context;
  switch (request.type) {
    case "load":
      return { id, type: "loaded", info: await models.load(request.call, context) };
    case "chat":
      return { id, type: "answered", ...(await answer(request.call, context)) };
    case "generate":
      return { id, type: "generated", image: await generate(request.call, request.initial, context) };
    case "attention-map":
      return { id, type: "attention-map", map: await attentionMap(request.image, context) };
    case "inspect":
      return { id, type: "inspected", model: await inspectImport(request.hub, request.precision, context.signal) };
    case "check":
      return { id, type: "checked", cases: await check(context) };
    case "tune":
      await tune(request.int8, context);
      return { id, type: "tuned" };
    case "memory":
      return { id, type: "memory", memory: await memory() };
  }
}

/** Reports progress at most every {@link PROGRESS_INTERVAL}, and always the final value. */
function reporter(id: number, phase: Progress["phase"]) {
  let last = 0;
  return (part: string, loaded: number, total?: number) => {
    const now = performance.now();
    if (now - last < PROGRESS_INTERVAL && (total === undefined || loaded < total)) return;
    last = now;
    postProgress({ id, type: "progress", progress: { phase, part, loaded, ...(total !== undefined && { total }) } });
  };
}

async function answer(call: ChatCall, context: Context): Promise<{ report: AnswerReport; image?: GeneratedImage; imageError?: WireError }> {
  const { id, signal } = context;
  if (call.image?.mode === "always") models.requireImageModel();
  const image = models.hasImageModel ? call.image : undefined;
  const messages = imageRequests.add(call.messages, image?.mode ?? "never");
  // These survive device loss: each answer resumes after the tokens that were generated.
  const resumeFrom: number[][] = [[]];
  const logprobs: TokenLogprobs[][] = [[]];
  /** How many of each answer's entries were sent with its text. */
  const sent: number[] = [];
  let droppedTurns = 0;
  const report = await models.withChatModel(context, async (model) => {
    const request = JSON.stringify({ messages, ...call.options, resumeFrom });
    let choice = 0;
    const report = await model.answer(request, call.images, (name: string, value: unknown) => {
      if (name === "dropped") droppedTurns = value as number;
      if (name === "choice") choice = value as number;
      const ids = (resumeFrom[choice] ??= []);
      const entries = (logprobs[choice] ??= []);
      if (name === "token" && ids.push(value as number) === 1 && choice === 0) postProgress({ id, type: "first-token" });
      if (name === "logprobs") {
        const [chosen, ...topLogprobs] = JSON.parse(value as string) as [TokenLogprob, ...TokenLogprob[]];
        entries.push({ ...chosen, topLogprobs });
      }
      if (name === "text") {
        const since = entries.slice(sent[choice] ?? 0);
        sent[choice] = entries.length;
        postProgress({ id, type: "text", text: value as string, choice, ...(since.length > 0 && { logprobs: since }) });
      }
      return !signal.aborted;
    });
    return { ...(JSON.parse(report) as AnswerReport), droppedTurns };
  });
  if (call.options.topLogprobs !== undefined) {
    for (const [index, choice] of report.choices.entries()) choice.logprobs = logprobs[index] ?? [];
  }
  const prompt = image && !signal.aborted ? imagePrompt(report.choices[0].text) : undefined;
  if (!image || prompt === undefined) return { report };
  const settings = { negativePrompt: chatNegativePrompt(), ...image.settings, prompt };
  try {
    return { report, image: await generate(settings, {}, context) };
  } catch (error) {
    // A failed image does not fail the answer.
    signal.throwIfAborted();
    return { report, imageError: toWire(error) };
  }
}

function generate(call: ImageCall & { prompt: string }, initial: InitialImage, context: Context): Promise<GeneratedImage> {
  const { id } = context;
  const onStep = (step: ImageStep) => postProgress({ id, type: "step", step });
  return models.withImageModel(context, (model) => generateImage(model, call, initial, context, onStep));
}

async function attentionMap(image: ImageData, context: Context): Promise<AttentionMap> {
  const map: unknown = await models.withChatModel(context, (model) => model.attentionMap(image, () => !context.signal.aborted));
  const { size, weights, image: rect } = map as Omit<AttentionMap, "image"> & { image: Float32Array };
  const [x = 0, y = 0, width = 1, height = 1] = rect;
  return { size, weights, image: { x, y, width, height } };
}

async function check({ signal, reporter }: Context): Promise<CheckedCase[]> {
  const subgroups = await enableSubgroups();
  const report = reporter("check");
  const cases = await selfCheck(subgroups, (_: string, fraction: number) => {
    report("kernels", fraction, 1);
    return !signal.aborted;
  });
  return JSON.parse(cases) as CheckedCase[];
}

/** Measures kernels for the chat model. The result applies at once and, if storage is allowed, to every later load. */
async function tune(int8: boolean, context: Context): Promise<void> {
  const report = context.reporter("tune");
  let measured = 0;
  const tuning = await models.withChatModel(context, (model) =>
    model.tune(int8, () => {
      report("kernels", ++measured);
      return !context.signal.aborted;
    }),
  );
  context.signal.throwIfAborted();
  if (models.mayStore) await storeTuning(await deviceId(), tuning);
}

async function memory(): Promise<MemoryReport> {
  return { wasm: (await wasm).memory.buffer.byteLength, gpu: models.bytes };
}
