// Converts between the package's types and those of the worker.

import { defaults } from "./defaults.js";
import { bundleUrl, hubSource } from "./env.js";
import { MgmError } from "./errors.js";
import { unpackMessages } from "./messages.js";
import { either, withKnownNames } from "./options.js";
import type { AnswerReport, ChatCall, FileSource, ImageCall } from "./protocol.js";
import type { Answer, ChatOptions, GenerateOptions, ImageSettings, Message, ModelSource } from "./types.js";

const CHAT_OPTIONS = [
  "maxNewTokens", "maxTokens", "maxCompletionTokens", "temperature", "topP", "topK", "seed", "stop", "allowSpecialTokens",
  "image", "signal",
];
const IMAGE_SETTINGS = [
  "negativePrompt", "width", "height", "numInferenceSteps", "steps", "guidanceScale", "scheduler", "predictionType", "promptWeights",
  "seed", "previews",
];
const GENERATE_OPTIONS = ["prompt", "image", "strength", "onStep", "signal", ...IMAGE_SETTINGS];

export function toFileSource(source: ModelSource): FileSource {
  if (typeof source === "string" || source instanceof URL) {
    const hub = hubSource(source);
    return { url: bundleUrl(source), ...(hub && { hub }) };
  }
  return { files: [...source].map((file) => [file.webkitRelativePath || file.name, file]) };
}

export async function toChatCall(messages: Message[], options: ChatOptions, signal: AbortSignal): Promise<ChatCall> {
  const known = withKnownNames("chat", options, CHAT_OPTIONS);
  const { temperature = defaults.temperature, topP, topK = defaults.topK, seed, stop = [], allowSpecialTokens, image = {} } = known;
  const openAiTokens = either("maxTokens", known.maxTokens, "maxCompletionTokens", known.maxCompletionTokens);
  const otherTokensName = known.maxTokens === undefined ? "maxCompletionTokens" : "maxTokens";
  const maxNewTokens = either("maxNewTokens", known.maxNewTokens, otherTokensName, openAiTokens) ?? defaults.maxNewTokens;
  const { mode = "auto", ...settings } = withKnownNames("image", image, ["mode", ...IMAGE_SETTINGS]);
  const stopStrings = typeof stop === "string" ? [stop] : stop;
  if (!stopStrings.every((text) => typeof text === "string" && text !== "")) {
    throw new MgmError("invalid-argument", "stop must be a string or a list of strings, none of them empty");
  }
  if (!["auto", "always", "never"].includes(mode)) {
    throw new MgmError("invalid-argument", `image.mode must be "auto", "always" or "never", not ${JSON.stringify(mode)}`);
  }
  return {
    ...(await unpackMessages(messages, signal)),
    options: {
      maxNewTokens,
      temperature,
      topK,
      ...(topP !== undefined && { topP }),
      seed: seed ?? Math.floor(Math.random() * Number.MAX_SAFE_INTEGER),
      ...(allowSpecialTokens !== undefined && { allowSpecialTokens }),
    },
    stop: stopStrings,
    ...(mode !== "never" && { image: { mode, settings: toImageCall(settings) } }),
  };
}

/** The options of an image, with known names only. */
export function toGenerateOptions(options: GenerateOptions): GenerateOptions {
  return withKnownNames("generate", options, GENERATE_OPTIONS);
}

/** Settings that are not given stay out: the core has the defaults. */
export function toImageCall(settings: ImageSettings & Pick<GenerateOptions, "strength">): ImageCall {
  const { negativePrompt, width, height, guidanceScale, scheduler, predictionType, promptWeights, seed, strength, previews } = settings;
  const steps = either("numInferenceSteps", settings.numInferenceSteps, "steps", settings.steps);
  return {
    // 32 bits: people copy seeds of images by hand.
    seed: seed ?? Math.floor(Math.random() * 2 ** 32),
    ...(negativePrompt !== undefined && { negativePrompt }),
    ...(width !== undefined && { width }),
    ...(height !== undefined && { height }),
    ...(steps !== undefined && { steps }),
    ...(guidanceScale !== undefined && { guidanceScale }),
    ...(scheduler !== undefined && { scheduler }),
    ...(predictionType !== undefined && { predictionType }),
    ...(promptWeights !== undefined && { promptWeights }),
    ...(strength !== undefined && { strength }),
    ...(previews !== undefined && { previews }),
  };
}

export function toAnswer(report: AnswerReport, firstTokenMs: number): Answer {
  const { text, tokenIds, promptTokens, cachedTokens, droppedTurns, visionMs, prefillMs, decodeMs } = report;
  const decoded = tokenIds.length - 1;
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
      tokensPerSecond: decodeMs > 0 ? (decoded * 1000) / decodeMs : 0,
    },
  };
}
