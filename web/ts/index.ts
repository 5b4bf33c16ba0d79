/**
 * Mini-Gemini vision-language models in the browser, on WebGPU.
 *
 * ```ts
 * import { Mgm } from "mgm-webgpu";
 *
 * const mgm = await Mgm.load("https://example.org/models/mgm-2b/");
 * const { text } = await mgm.chat([{ role: "user", content: [
 *   { type: "image_url", image_url: "cat.jpg" },
 *   { type: "text", text: "What is this?" },
 * ]}]);
 * ```
 *
 * @module
 */

export { ChatAnswer } from "./chat-answer.js";
export { defaults, limits } from "./defaults.js";
export { bundleUrl, env, type Environment } from "./env.js";
export { MgmError, type MgmErrorCode } from "./errors.js";
export { Mgm } from "./mgm.js";
export type {
  ChatCompletion, ChatCompletionChunk, ChatCompletionLogprobs, ChatCompletionMessage, ChatCompletionPart, ChatCompletionRequest,
  ChatCompletions, ChatCompletionStream, ChatCompletionTokenLogprob, ChatCompletionUsage, OpenAI,
} from "./openai.js";
export type { CheckedCase, MemoryReport } from "./protocol.js";
export { cache, type CachedBundle } from "./storage.js";
export type { Support, SupportQuestion } from "./support.js";
export type {
  Answer, AttentionMap, ChatImageOptions, ChatOptions, Choice, ContentPart, Delta, FinishReason, GeneratedImage, GenerateOptions, ImageInput,
  ImageModelInfo, ImageSettings, ImageStep, LoadOptions, Message, ModelInfo, ModelInspection, ModelSource, ModelSummary, Precision, Progress, Timings,
  TokenLogprob, TokenLogprobs, Usage,
} from "./types.js";
