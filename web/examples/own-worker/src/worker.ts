// Loads the model here, next to whatever else this worker does, and answers in the shapes of OpenAI's API. The package starts a worker of
// its own from this one.

import { type ChatCompletionMessage, Mgm } from "mgm-webgpu";

const model = Mgm.load("/models/pocket/");

self.onmessage = async ({ data }: MessageEvent<ChatCompletionMessage[]>) => {
  try {
    const mgm = await model;
    const stream = await mgm.openai.chat.completions.create({ messages: data, stream: true, max_tokens: 64, temperature: 0 });
    for await (const chunk of stream) self.postMessage({ text: chunk.choices[0]?.delta.content ?? "" });
    self.postMessage({ done: true });
  } catch (error) {
    self.postMessage({ error: String(error) });
  }
};
