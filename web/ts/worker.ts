// The dedicated worker: it hears calls and answers them, one at a time; aborting is heard between steps.

import init, {
  askingForPicture, negativePrompt, picturePrompt, selfCheck, wantsPicture,
} from "./wasm/mgm_web.js";
import { wasmResponse } from "./kept.js";
import { toWire, type WireError } from "./errors.js";
import { askForSubgroups, deviceName, Models, type Watch } from "./models.js";
import { paint } from "./paint.js";
import type { ChatCall, CheckedCase, MemoryReport, News, Outcome, PictureCall, Reply, Report, Request } from "./protocol.js";
import { keepTuning } from "./storage.js";
import type { LookMap, Picture, Progress } from "./types.js";

/** The least time between two reports of progress, in milliseconds. */
const PROGRESS_INTERVAL = 100;

declare const self: DedicatedWorkerGlobalScope;

const wasm = init({
  module_or_path: wasmResponse(import.meta.url, self.name, () => new URL("./mgm_web_bg.wasm", import.meta.url)),
});
/** Calls that are not answered yet. */
const calls = new Map<number, { abort: AbortController; begun: boolean }>();
/** The calls before, so that they go one after the other. */
let turn: Promise<unknown> = Promise.resolve();
const models = new Models();

/** A call that is under way. */
interface Context extends Watch {
  id: number;
}

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
      await wasm;
      const { signal } = call.abort;
      const outcome = await handle(data, { id, signal, report: (phase) => reporter(id, phase) });
      calls.delete(id);
      reply(outcome);
      // Until somebody asks for something. Whether the device was lost the next call finds out.
      if (outcome.type === "loaded") await models.prepare(() => calls.size === 0).catch(() => undefined);
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

/** What is told while a call is under way. */
const tell = (news: News): void => reply(news);

async function handle(request: Exclude<Request, { type: "abort" }>, context: Context): Promise<Outcome> {
  const { id } = context;
  switch (request.type) {
    case "load":
      return { id, type: "loaded", info: await models.load(request.call, context) };
    case "chat":
      return { id, type: "answered", ...(await answer(request.call, context)) };
    case "paint":
      return { id, type: "painted", picture: await paintFor(request.call, request.image, context) };
    case "look":
      return { id, type: "looked", map: await look(request.image, context) };
    case "check":
      return { id, type: "checked", cases: await check(context) };
    case "tune":
      await tune(request.int8, context);
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
    tell({ id, type: "progress", progress: { phase, part, loaded: done, total } });
  };
}

async function answer(call: ChatCall, context: Context): Promise<{ report: Report; picture?: Picture; pictureError?: WireError }> {
  const { id, signal } = context;
  if (call.picture?.when === "always") models.needPainter();
  const { paints } = models;
  const messages = paints ? askingForPictures(call) : call.messages;
  // On a new device the answer goes on behind these.
  const begun: number[] = [];
  let droppedTurns = 0;
  const report = await models.answering(context, async (engine) => {
    const request = JSON.stringify({ messages, ...call.options, begun });
    const report = await engine.answer(request, call.images, (name: string, value: unknown) => {
      if (name === "dropped") droppedTurns = value as number;
      if (name === "text") tell({ id, type: "text", text: value as string });
      if (name === "token" && begun.push(value as number) === 1) tell({ id, type: "first-token" });
      return !signal.aborted;
    });
    return { ...(JSON.parse(report) as Report), droppedTurns };
  });
  const prompt = call.picture && paints && !signal.aborted ? picturePrompt(report.text) : undefined;
  if (!call.picture || prompt === undefined) return { report };
  const settings = { negativePrompt: negativePrompt(), ...call.picture.settings, prompt };
  try {
    return { report, picture: await paintFor(settings, undefined, context) };
  } catch (error) {
    // The answer is there all the same.
    signal.throwIfAborted();
    return { report, pictureError: toWire(error) };
  }
}

/** The messages, with a request for a picture behind the questions that want one. */
function askingForPictures({ messages, picture }: ChatCall): ChatCall["messages"] {
  if (!picture) return messages;
  const last = messages.length - 1;
  return messages.map((message, index) => {
    // Earlier questions too, by the same rule as when they were the last.
    const wanted = message.role === "user" && (wantsPicture(message.text) || (index === last && picture.when === "always"));
    return wanted ? { ...message, text: askingForPicture(message.text) } : message;
  });
}

function paintFor(call: PictureCall & { prompt: string }, image: ImageData | undefined, context: Context): Promise<Picture> {
  const { id } = context;
  return models.painting(context, (painter) => paint(painter, call, image, context, (step) => tell({ id, type: "step", step })));
}

async function look(image: ImageData, context: Context): Promise<LookMap> {
  const map: unknown = await models.answering(context, (engine) => engine.look(image, () => !context.signal.aborted));
  const { size, weights, picture } = map as Omit<LookMap, "picture"> & { picture: Float32Array };
  const [x = 0, y = 0, width = 1, height = 1] = picture;
  return { size, weights, picture: { x, y, width, height } };
}

async function check({ signal, report }: Context): Promise<CheckedCase[]> {
  const subgroups = await askForSubgroups();
  const progress = report("check");
  const cases = await selfCheck(subgroups, (_: string, part: number) => {
    progress("kernels", part, 1);
    return !signal.aborted;
  });
  return JSON.parse(cases) as CheckedCase[];
}

/** Measures kernels for the loaded model; what is found is used at once, and by every later load. */
async function tune(int8: boolean, context: Context): Promise<void> {
  const progress = context.report("tune");
  let measured = 0;
  const tuning = await models.answering(context, (engine) =>
    engine.tune(int8, () => {
      progress("kernels", ++measured, Number.POSITIVE_INFINITY);
      return !context.signal.aborted;
    }),
  );
  context.signal.throwIfAborted();
  if (models.kept) await keepTuning(await deviceName(), tuning);
}

async function memory(): Promise<MemoryReport> {
  return { wasm: (await wasm).memory.buffer.byteLength, gpu: models.bytes };
}
