// Converts between the package's types and those of the worker.

import { defaults } from "./defaults.js";
import { bundleUrl, hubSource } from "./env.js";
import { MgmError } from "./errors.js";
import { unpackMessages } from "./messages.js";
import { either, withKnownNames } from "./options.js";
import type { AnswerReport, ChatCall, ChoiceReport, FileSource, ImageCall } from "./protocol.js";
import type { Answer, ChatOptions, Choice, GenerateOptions, ImageSettings, Message, ModelSource } from "./types.js";

const CHAT_OPTIONS = [
  "maxNewTokens", "maxTokens", "maxCompletionTokens", "temperature", "topP", "topK", "minP", "repetitionPenalty", "presencePenalty",
  "frequencyPenalty", "logitBias", "topLogprobs", "n", "seed", "stop", "stopTokenIds", "minTokens", "ignoreEos", "allowSpecialTokens",
  "image", "signal",
];
const IMAGE_SETTINGS = [
  "negativePrompt", "width", "height", "numInferenceSteps", "steps", "guidanceScale", "scheduler", "predictionType", "promptWeights",
  "seed", "previews",
];
const GENERATE_OPTIONS = ["prompt", "image", "mask", "strength", "onStep", "signal", ...IMAGE_SETTINGS];

export function toFileSource(source: ModelSource): FileSource {
  if (typeof source === "string" || source instanceof URL) {
    const hub = hubSource(source);
    return { url: bundleUrl(source), ...(hub && { hub }) };
  }
  return { files: [...source].map((file) => [file.webkitRelativePath || file.name, file]) };
}

export async function toChatCall(messages: Message[], options: ChatOptions, signal: AbortSignal): Promise<ChatCall> {
  const known = withKnownNames("chat", options, CHAT_OPTIONS);
  const { temperature = defaults.temperature, topK = defaults.topK, seed, stop = [], image = {} } = known;
  const { topP, minP, repetitionPenalty, presencePenalty, frequencyPenalty, logitBias, topLogprobs, n } = known;
  const { stopTokenIds, minTokens, ignoreEos, allowSpecialTokens } = known;
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
      ...present({ topP, minP, repetitionPenalty, presencePenalty, frequencyPenalty, topLogprobs, n, stopTokenIds, minTokens }),
      ...present({ ignoreEos, allowSpecialTokens }),
      ...(logitBias !== undefined && { logitBias: toBiases(logitBias) }),
      ...(stopStrings.length > 0 && { stop: stopStrings }),
      seed: seed ?? Math.floor(Math.random() * Number.MAX_SAFE_INTEGER),
    },
    ...(mode !== "never" && { image: { mode, settings: toImageCall(settings) } }),
  };
}

/** The properties that are not `undefined`. JSON has no NaN: it would be as if absent. */
function present<T extends object>(values: T): { [K in keyof T]?: Exclude<T[K], undefined> } {
  const entries = Object.entries(values).filter(([, value]) => value !== undefined);
  const wrong = entries.find(([, value]) => typeof value === "number" && !Number.isFinite(value));
  if (wrong) throw new MgmError("invalid-argument", `${wrong[0]} must be a finite number, not ${String(wrong[1])}`);
  return Object.fromEntries(entries) as { [K in keyof T]?: Exclude<T[K], undefined> };
}

function toBiases(logitBias: Record<string, number>): [id: number, bias: number][] {
  return Object.entries(logitBias).map(([id, bias]) => {
    if (!/^\d+$/.test(id) || typeof bias !== "number") {
      throw new MgmError("invalid-argument", `logitBias must have numbers by token id, not ${JSON.stringify({ [id]: bias })}`);
    }
    return [Number(id), bias];
  });
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
  const { promptTokens, cachedTokens, droppedTurns, visionMs, prefillMs, decodeMs } = report;
  const toChoice = ({ finishReason, ...choice }: ChoiceReport): Choice => ({
    ...choice,
    finishReason: finishReason === "stop" ? "stop" : "length",
  });
  const sum = (count: (choice: ChoiceReport) => number) => report.choices.reduce((total, choice) => total + count(choice), 0);
  const decoded = sum(({ tokenIds }) => Math.max(0, tokenIds.length - 1));
  return {
    ...toChoice(report.choices[0]),
    choices: report.choices.map(toChoice),
    usage: { promptTokens, cachedTokens, completionTokens: sum(({ tokenIds }) => tokenIds.length), droppedTurns },
    timings: {
      visionMs,
      prefillMs,
      decodeMs,
      firstTokenMs,
      tokensPerSecond: decodeMs > 0 ? (decoded * 1000) / decodeMs : 0,
    },
  };
}
