// Loads a model in this worker and answers through OpenAI's API. The package starts its own worker from this one.

import { type ChatCompletionMessage, Mgm, MgmError } from "mgm-webgpu";

const model = Mgm.load("/models/pocket/");

self.onmessage = async ({ data }: MessageEvent<ChatCompletionMessage[]>) => {
  try {
    const mgm = await model;
    const stream = await mgm.openai.chat.completions.create({ messages: data, stream: true, max_tokens: 64, temperature: 0 });
    for await (const chunk of stream) self.postMessage({ text: chunk.choices[0]?.delta.content ?? "" });
    self.postMessage({ done: true });
  } catch (error) {
    self.postMessage({ error: error instanceof MgmError ? `${error.message} (${error.code})` : String(error) });
  }
};
