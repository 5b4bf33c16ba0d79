// Messages as pages write them, into what the worker takes: texts, and pixels beside.

import { MgmError } from "./errors.js";
import type { ChatCall } from "./protocol.js";
import type { ImageInput, Message } from "./types.js";

/** Pixels of pictures that came before, while the page holds on to them. */
const known = new WeakMap<object, ImageData>();

/** Takes the pictures out of the messages. */
export async function unpack(messages: Message[], signal?: AbortSignal): Promise<Pick<ChatCall, "messages" | "images">> {
  const images: ImageData[] = [];
  const plain: ChatCall["messages"] = [];
  for (const { role, content } of messages) {
    const texts: string[] = [];
    const before = images.length;
    for (const part of typeof content === "string" ? [{ type: "text" as const, text: content }] : content) {
      switch (part.type) {
        case "text":
          texts.push(part.text);
          break;
        case "image_url":
          images.push(await fetchPixels(typeof part.image_url === "string" ? part.image_url : part.image_url.url, signal));
          break;
        case "image":
          images.push(await toPixels(part.image));
          break;
        default:
          throw new MgmError("invalid-argument", `unknown part of a message: ${JSON.stringify(part)}`);
      }
      signal?.throwIfAborted();
    }
    plain.push({ role, text: texts.join("\n"), images: images.length - before });
  }
  return { messages: plain, images };
}

async function fetchPixels(url: string, signal?: AbortSignal): Promise<ImageData> {
  let blob: Blob;
  try {
    const response = await fetch(url, signal ? { signal } : {});
    if (!response.ok) throw new MgmError("http", `${url}: the server answers ${response.status}`);
    blob = await response.blob();
  } catch (cause) {
    signal?.throwIfAborted();
    if (cause instanceof MgmError) throw cause;
    const shown = url.length > 100 ? `${url.slice(0, 100)}...` : url;
    throw new MgmError("network", `${shown}: the picture could not be fetched (is it on a server that allows it?)`, { cause });
  }
  return toPixels(blob);
}

/** The pixels of a picture, upright. */
export async function toPixels(image: ImageInput): Promise<ImageData> {
  if (image instanceof ImageData) return image;
  const found = image instanceof Blob ? known.get(image) : undefined;
  if (found) return found;
  let bitmap: ImageBitmap;
  try {
    bitmap = await createImageBitmap(image, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch (cause) {
    const what = image instanceof Blob ? `a file of type ${JSON.stringify(image.type)}` : "this";
    throw new MgmError("image", `${what} is no picture that this browser can read`, { cause });
  }
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  if (!context) throw new MgmError("image", "this browser gives no canvas to read pixels from");
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  // What is on a canvas or in a video may change; a file stays as it is.
  if (image instanceof Blob) known.set(image, pixels);
  return pixels;
}
