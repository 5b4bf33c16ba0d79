// Converts messages of a page to texts and pixels for the worker.

import { MgmError } from "./errors.js";
import type { ChatCall } from "./protocol.js";
import type { ContentPart, ImageInput, Message } from "./types.js";

/** Decoded pixels of each blob. An entry lives as long as its blob. */
const decoded = new WeakMap<object, ImageData>();

/** Separates texts and images, and decodes the images. */
export async function unpackMessages(messages: Message[], signal?: AbortSignal): Promise<Pick<ChatCall, "messages" | "images">> {
  const images: ImageData[] = [];
  const plain: ChatCall["messages"] = [];
  // The messages may be unchecked JSON.
  if (!Array.isArray(messages)) throw new MgmError("invalid-argument", "messages must be a list: [{ role, content }, …]");
  for (const message of messages) {
    const { role, content } = (message as Message | null) ?? {};
    if (typeof role !== "string" || !(typeof content === "string" || Array.isArray(content))) {
      throw new MgmError("invalid-argument", `a message needs a role, and content that is a string or a list of parts: ${JSON.stringify(message)}`);
    }
    const texts: string[] = [];
    const before = images.length;
    for (const part of typeof content === "string" ? [content] : content) {
      const found = parsePart(part);
      if (found === undefined) throw new MgmError("invalid-argument", `unknown content part: ${JSON.stringify(part)}`);
      if ("text" in found) texts.push(found.text);
      else images.push(typeof found.image === "string" ? await fetchPixels(found.image, signal) : await toPixels(found.image));
      signal?.throwIfAborted();
    }
    plain.push({ role, text: texts.join("\n"), images: images.length - before });
  }
  return { messages: plain, images };
}

/** A text, an image, or the address of an image. */
function parsePart(part: ContentPart): { text: string } | { image: ImageInput | string } | undefined {
  if (typeof part === "string") return { text: part };
  if (isImage(part)) return { image: part };
  switch (part?.type) {
    case "text":
      return typeof part.text === "string" ? { text: part.text } : undefined;
    case "image":
      return isImage(part.image) ? { image: part.image } : undefined;
    case "image_url": {
      const image = part.image_url;
      const inside = typeof image === "object" && !isImage(image) ? image?.url : image;
      return typeof inside === "string" || isImage(inside) ? { image: inside } : undefined;
    }
    default:
      return undefined;
  }
}

function isImage(value: unknown): value is ImageInput {
  const kinds = [
    Blob, ImageBitmap, ImageData, OffscreenCanvas, globalThis.HTMLImageElement, globalThis.HTMLCanvasElement, globalThis.HTMLVideoElement,
  ];
  return kinds.some((kind) => kind !== undefined && value instanceof kind);
}

async function fetchPixels(url: string, signal?: AbortSignal): Promise<ImageData> {
  const shown = url.length > 100 ? `${url.slice(0, 100)}…` : url;
  let blob: Blob;
  try {
    const response = await fetch(url, signal ? { signal } : {});
    if (!response.ok) throw new MgmError("http", `${shown}: the server responded ${response.status}`);
    blob = await response.blob();
  } catch (cause) {
    signal?.throwIfAborted();
    if (cause instanceof MgmError) throw cause;
    throw new MgmError("network", `${shown}: the image could not be fetched (another site must allow it with CORS headers)`, { cause });
  }
  return toPixels(blob);
}

/** Decodes an image. The EXIF orientation is applied. */
export async function toPixels(image: ImageInput): Promise<ImageData> {
  if (image instanceof ImageData) return image;
  const found = image instanceof Blob ? decoded.get(image) : undefined;
  if (found) return found;
  let bitmap: ImageBitmap;
  try {
    bitmap = await createImageBitmap(image, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch (cause) {
    const what = image instanceof Blob ? `a file of type ${JSON.stringify(image.type)}` : "this";
    throw new MgmError("image", `${what} is not an image that this browser can decode`, { cause });
  }
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  if (!context) throw new MgmError("image", "this browser provides no canvas to read pixels from");
  context.drawImage(bitmap, 0, 0);
  let pixels: ImageData;
  try {
    pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  } catch (cause) {
    bitmap.close();
    if ((cause as Error).name !== "SecurityError") throw new MgmError("image", `the image's pixels cannot be read: ${String(cause)}`, { cause });
    const message =
      "the image is from another site, so its pixels cannot be read: the other site must send CORS headers, and an <img> or <video> needs " +
      "the attribute crossorigin";
    throw new MgmError("cors", message, { cause });
  }
  // A canvas loses the colours of transparent pixels. The model needs them: alpha is dropped, not composited.
  if (hasTransparency(pixels)) pixels = (await unpremultiplied(bitmap)) ?? pixels;
  bitmap.close();
  // Blobs are immutable; a canvas or a video may change.
  if (image instanceof Blob) decoded.set(image, pixels);
  return pixels;
}

function hasTransparency({ data }: ImageData): boolean {
  for (let at = 3; at < data.length; at += 4) if (data[at] !== 255) return true;
  return false;
}

/** Reads a bitmap's colours without premultiplied alpha. `undefined` where the browser or the image's size does not allow it. */
type Reader = (bitmap: ImageBitmap) => Promise<ImageData | undefined>;

/** The first of the ways that keeps a colour on this browser: WebGL does in Chromium, a video frame in Firefox. */
let reader: Promise<Reader | undefined> | undefined;

async function unpremultiplied(bitmap: ImageBitmap): Promise<ImageData | undefined> {
  const read = await (reader ??= findReader());
  return read?.(bitmap).catch(() => undefined);
}

async function findReader(): Promise<Reader | undefined> {
  const colour = [201, 97, 3, 1];
  const bitmap = await createImageBitmap(new ImageData(Uint8ClampedArray.from(colour), 1, 1), { premultiplyAlpha: "none" });
  for (const read of [readTexture, readVideoFrame]) {
    const pixels = await read(bitmap).catch(() => undefined);
    if (pixels && colour.every((value, channel) => value === pixels.data[channel])) return read;
  }
  return undefined;
}

async function readTexture(bitmap: ImageBitmap): Promise<ImageData | undefined> {
  const { width, height } = bitmap;
  const gl = new OffscreenCanvas(1, 1).getContext("webgl2");
  if (!gl || Math.max(width, height) > (gl.getParameter(gl.MAX_TEXTURE_SIZE) as number)) return undefined;
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, gl.getParameter(gl.TEXTURE_BINDING_2D) as WebGLTexture, 0);
  const pixels = new ImageData(width, height);
  gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, pixels.data);
  const failed = gl.getError() !== gl.NO_ERROR;
  gl.getExtension("WEBGL_lose_context")?.loseContext();
  return failed ? undefined : pixels;
}

async function readVideoFrame(bitmap: ImageBitmap): Promise<ImageData | undefined> {
  if (typeof VideoFrame === "undefined") return undefined;
  const { width, height } = bitmap;
  const frame = new VideoFrame(bitmap, { timestamp: 0, alpha: "keep" });
  try {
    const pixels = new ImageData(width, height);
    await frame.copyTo(pixels.data, { format: "RGBA", layout: [{ offset: 0, stride: 4 * width }] });
    return pixels;
  } finally {
    frame.close();
  }
}
