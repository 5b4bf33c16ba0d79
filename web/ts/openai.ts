// Chat completions in the request and response format of OpenAI's API, answered by the loaded model.

import type { ChatAnswer } from "./chat-answer.js";
import { MgmError } from "./errors.js";
import { anySignal } from "./http.js";
import type { Mgm } from "./mgm.js";
import type {
  Answer, ChatOptions, ContentPart, FinishReason, ImageInput, Message, TokenLogprob, TokenLogprobs,
} from "./types.js";

/** A message of a request. Consecutive messages with the same role are joined. */
export interface ChatCompletionMessage {
  role: "system" | "developer" | "user" | "assistant";
  content: string | ChatCompletionPart[];
  /** Ignored. */
  name?: string;
}

/** A part of a message. Images can also be objects of the page: a `Blob`, a canvas, … */
export type ChatCompletionPart =
  | { type: "text"; text: string }
  | { type: "image_url"; image_url: { url: string | ImageInput; detail?: "auto" | "low" | "high" } };

/**
 * The supported part of the body of `POST /v1/chat/completions`. Fields without effect on the answer (`user`, `metadata`, `store`, …) are
 * ignored; all others are an error with the code `unsupported`. Defaults are those of {@link ChatOptions}. Answers never contain images.
 */
export interface ChatCompletionRequest {
  messages: ChatCompletionMessage[];
  /** Copied to the response; it selects nothing, because only one model is loaded. Default: the model's name. */
  model?: string;
  stream?: boolean | null;
  stream_options?: { include_usage?: boolean } | null;
  /** Takes precedence over `max_tokens`. */
  max_completion_tokens?: number | null;
  max_tokens?: number | null;
  temperature?: number | null;
  top_p?: number | null;
  /** Not in OpenAI's API: sample only from the K most likely tokens. */
  top_k?: number | null;
  /** Not in OpenAI's API: see {@link ChatOptions.minP}. */
  min_p?: number | null;
  /** Not in OpenAI's API: see {@link ChatOptions.repetitionPenalty}. */
  repetition_penalty?: number | null;
  presence_penalty?: number | null;
  frequency_penalty?: number | null;
  logit_bias?: Record<string, number> | null;
  logprobs?: boolean | null;
  /** Needs `logprobs`. */
  top_logprobs?: number | null;
  seed?: number | null;
  stop?: string | string[] | null;
  /** Number of answers. */
  n?: number | null;
}

/** Log-probabilities of the tokens of an answer or of a chunk. */
export interface ChatCompletionLogprobs {
  content: (ChatCompletionTokenLogprob & { top_logprobs: ChatCompletionTokenLogprob[] })[];
  refusal: null;
}

/** A token and its log-probability. */
export interface ChatCompletionTokenLogprob {
  token: string;
  logprob: number;
  bytes: number[] | null;
}

/** Token counts. */
export interface ChatCompletionUsage {
  prompt_tokens: number;
  completion_tokens: number;
  total_tokens: number;
  prompt_tokens_details: { cached_tokens: number };
}

/** A whole response. */
export interface ChatCompletion {
  id: string;
  object: "chat.completion";
  /** Seconds since 1970. */
  created: number;
  model: string;
  choices: {
    index: number;
    message: { role: "assistant"; content: string; refusal: null };
    logprobs: ChatCompletionLogprobs | null;
    finish_reason: FinishReason;
  }[];
  usage: ChatCompletionUsage;
}

/** An event of a streamed response. */
export interface ChatCompletionChunk {
  id: string;
  object: "chat.completion.chunk";
  /** Seconds since 1970. */
  created: number;
  model: string;
  choices: {
    index: number;
    delta: { role?: "assistant"; content?: string };
    logprobs: ChatCompletionLogprobs | null;
    finish_reason: FinishReason | null;
  }[];
  /** With `stream_options.include_usage`: in the last chunk, which has no choices; `null` before. */
  usage?: ChatCompletionUsage | null;
}

/** A streamed response. Leaving the loop early, or `controller.abort()`, stops the answer. */
export interface ChatCompletionStream extends AsyncIterable<ChatCompletionChunk> {
  controller: AbortController;
}

/** Fields of a request: `true` if supported, otherwise a test for the values that have no effect. */
const FIELDS: Record<string, true | ((value: unknown) => boolean)> = {
  messages: true, model: true, stream: true, stream_options: true, max_completion_tokens: true, max_tokens: true, temperature: true,
  top_p: true, top_k: true, seed: true, stop: true, n: true, min_p: true, repetition_penalty: true, presence_penalty: true,
  frequency_penalty: true, logit_bias: true, logprobs: (value) => typeof value === "boolean", top_logprobs: true,
  ...Object.fromEntries(
    [
      "user", "metadata", "store", "service_tier", "prompt_cache_key", "safety_identifier", "reasoning_effort", "verbosity", "prediction",
      "parallel_tool_calls",
    ].map((name) => [name, () => true]),
  ),
  tools: (value) => Array.isArray(value) && value.length === 0,
  tool_choice: (value) => value === "none" || value === "auto",
  modalities: (value) => Array.isArray(value) && value.every((modality) => modality === "text"),
  response_format: (value) => (value as { type?: unknown }).type === "text",
};

/** OpenAI's API on the loaded model. */
export class OpenAI {
  readonly chat: { readonly completions: ChatCompletions };

  /** @internal */
  constructor(mgm: Mgm) {
    this.chat = { completions: new ChatCompletions(mgm) };
  }
}

/** `mgm.openai.chat.completions`. */
export class ChatCompletions {
  readonly #mgm: Mgm;

  /** @internal */
  constructor(mgm: Mgm) {
    this.#mgm = mgm;
  }

  /**
   * Answers the last message. Abort `options.signal` to stop.
   *
   * @throws {@link MgmError} `unsupported` or `invalid-argument` for fields and messages that are not supported; the signal's reason if
   * aborted. A stream throws later errors in its loop.
   */
  create(body: ChatCompletionRequest & { stream: true }, options?: { signal?: AbortSignal }): Promise<ChatCompletionStream>;
  create(body: ChatCompletionRequest & { stream?: false | null }, options?: { signal?: AbortSignal }): Promise<ChatCompletion>;
  create(body: ChatCompletionRequest, options?: { signal?: AbortSignal }): Promise<ChatCompletion | ChatCompletionStream>;
  async create(body: ChatCompletionRequest, options: { signal?: AbortSignal } = {}): Promise<ChatCompletion | ChatCompletionStream> {
    checkFields(body);
    const messages = toMessages(body.messages);
    const head = {
      id: `chatcmpl-${crypto.randomUUID()}`,
      created: Math.floor(Date.now() / 1000),
      model: body.model ?? this.#mgm.info.name,
    };
    const controller = new AbortController();
    const signal = options.signal ? anySignal([options.signal, controller.signal]) : controller.signal;
    const answer = this.#mgm.chat(messages, { ...toChatOptions(body), signal });
    if (body.stream) {
      return { controller, [Symbol.asyncIterator]: () => toChunks(answer, head, body.stream_options?.include_usage ?? false, body.n ?? 1) };
    }
    const { choices, usage } = await answer;
    return {
      ...head,
      object: "chat.completion",
      choices: choices.map(({ text, finishReason, logprobs }, index) => ({
        index,
        message: { role: "assistant", content: text, refusal: null },
        logprobs: toLogprobs(logprobs),
        finish_reason: finishReason,
      })),
      usage: toUsage(usage),
    };
  }
}

function checkFields(body: ChatCompletionRequest): void {
  for (const [name, value] of Object.entries(body)) {
    if (value === undefined || value === null) continue;
    const rule = FIELDS[name];
    if (rule !== true && !rule?.(value)) throw new MgmError("unsupported", `the field ${name} is not supported: ${JSON.stringify(value)}`);
  }
}

function toChatOptions(body: ChatCompletionRequest): ChatOptions {
  const { max_completion_tokens, max_tokens, temperature, top_p, top_k, seed, stop, n, logprobs, top_logprobs } = body;
  const { min_p, repetition_penalty, presence_penalty, frequency_penalty, logit_bias } = body;
  const maxTokens = max_completion_tokens ?? max_tokens;
  if (top_logprobs != null && !logprobs) throw new MgmError("invalid-argument", "top_logprobs needs logprobs: true");
  return {
    ...(n != null && { n }),
    ...(min_p != null && { minP: min_p }),
    ...(repetition_penalty != null && { repetitionPenalty: repetition_penalty }),
    ...(presence_penalty != null && { presencePenalty: presence_penalty }),
    ...(frequency_penalty != null && { frequencyPenalty: frequency_penalty }),
    ...(logit_bias != null && { logitBias: logit_bias }),
    ...(logprobs && { topLogprobs: top_logprobs ?? 0 }),
    ...(maxTokens != null && { maxTokens }),
    ...(temperature != null && { temperature }),
    ...(top_p != null && { topP: top_p }),
    ...(top_k != null && { topK: top_k }),
    ...(seed != null && { seed }),
    ...(stop != null && { stop }),
    image: { mode: "never" },
  };
}

/** Converts messages to the package's. Joins consecutive messages of one role with an empty line: templates need alternating roles. */
function toMessages(messages: ChatCompletionMessage[]): Message[] {
  if (!Array.isArray(messages)) throw new MgmError("invalid-argument", "messages must be a list: [{ role, content }, …]");
  const result: { role: Message["role"]; content: ContentPart[] }[] = [];
  for (const message of messages) {
    const { role: given, content } = (message as ChatCompletionMessage | null) ?? {};
    const role = given === "developer" ? "system" : given;
    if (role !== "system" && role !== "user" && role !== "assistant") {
      throw new MgmError("unsupported", `the role ${JSON.stringify(given)} is not supported`);
    }
    const parts = typeof content === "string" ? [{ type: "text", text: content } as const] : content;
    if (!Array.isArray(parts)) throw new MgmError("invalid-argument", `the content of a message must be a string or a list of parts: ${JSON.stringify(message)}`);
    for (const part of parts) {
      if (part?.type !== "text" && part?.type !== "image_url") {
        throw new MgmError("unsupported", `content parts of type ${JSON.stringify((part as { type?: unknown } | null)?.type)} are not supported`);
      }
    }
    const last = result.at(-1);
    if (last?.role === role) last.content.push("", ...parts);
    else result.push({ role, content: [...parts] });
  }
  return result;
}

function toLogprobs(logprobs: TokenLogprobs[] | undefined): ChatCompletionLogprobs | null {
  if (!logprobs) return null;
  const toToken = ({ token, logprob, bytes }: TokenLogprob): ChatCompletionTokenLogprob => ({ token, logprob, bytes });
  return {
    content: logprobs.map(({ topLogprobs, ...token }) => ({ ...toToken(token), top_logprobs: topLogprobs.map(toToken) })),
    refusal: null,
  };
}

const toUsage = ({ promptTokens, completionTokens, cachedTokens }: Answer["usage"]): ChatCompletionUsage => ({
  prompt_tokens: promptTokens,
  completion_tokens: completionTokens,
  total_tokens: promptTokens + completionTokens,
  prompt_tokens_details: { cached_tokens: cachedTokens },
});

async function* toChunks(
  answer: ChatAnswer,
  head: Pick<ChatCompletionChunk, "id" | "created" | "model">,
  includeUsage: boolean,
  n: number,
): AsyncGenerator<ChatCompletionChunk, void> {
  type Choice = ChatCompletionChunk["choices"][number];
  const chunk = (index: number, delta: Choice["delta"], rest: Partial<Choice> = {}): ChatCompletionChunk => ({
    ...head,
    object: "chat.completion.chunk",
    choices: [{ index, delta, logprobs: null, finish_reason: null, ...rest }],
    ...(includeUsage && { usage: null }),
  });
  // Start iterating before the first chunk, so that the loop throws a failure.
  const deltas = answer[Symbol.asyncIterator]();
  for (let index = 0; index < n; index++) yield chunk(index, { role: "assistant", content: "" });
  for await (const delta of deltas) {
    if (delta.type === "text") yield chunk(delta.choice, { content: delta.text }, { logprobs: toLogprobs(delta.logprobs) });
    if (delta.type !== "done") continue;
    const { choices, usage } = delta.answer;
    for (const [index, { finishReason }] of choices.entries()) yield chunk(index, {}, { finish_reason: finishReason });
    if (includeUsage) yield { ...chunk(0, {}), choices: [], usage: toUsage(usage) };
  }
}
