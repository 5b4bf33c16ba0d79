// Which questions of a conversation request an image. For the worker.

import { imagePrompt, wantsImage, withImageRequest } from "./wasm/mgm_web.js";
import type { ChatCallMessage } from "./protocol.js";
import type { ChatImageOptions } from "./types.js";

/** A message of the previous call, and whether it requested an image. */
interface SentMessage {
  message: ChatCallMessage;
  requests: boolean;
}

const isSame = (a: ChatCallMessage, b: ChatCallMessage) => a.role === b.role && a.text === b.text && a.images === b.images;

/**
 * Appends requests for images to questions. A page passes its conversation without them, but the prompt must repeat them: only then does it
 * match the KV cache, and the model sees the conversation that it answered.
 */
export class ImageRequests {
  #previous: SentMessage[] = [];

  /**
   * Returns the messages with their requests. `mode` applies to the last message; the others are sent as in the previous call. For
   * messages that the previous call did not contain, infers the requests from the texts.
   */
  add(messages: ChatCallMessage[], mode: NonNullable<ChatImageOptions["mode"]>): ChatCallMessage[] {
    let isPrefix = true;
    const sent = messages.map((message, index): SentMessage => {
      const before = this.#previous[index];
      isPrefix &&= before !== undefined && isSame(before.message, message);
      const asksInWords = mode !== "never" && wantsImage(message.text);
      let requests: boolean;
      if (index === messages.length - 1) requests = asksInWords || mode === "always";
      else if (isPrefix && before) requests = before.requests;
      else requests = asksInWords || imagePrompt(messages[index + 1]?.text ?? "") !== undefined;
      return { message, requests: requests && message.role === "user" };
    });
    this.#previous = sent;
    return sent.map(({ message, requests }) => (requests ? { ...message, text: withImageRequest(message.text) } : message));
  }
}
