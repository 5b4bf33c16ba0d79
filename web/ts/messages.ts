// Messages as pages write them, into what the worker takes: texts, and pixels beside.

import { MgmError } from "./errors.js";
import type { ChatCall } from "./protocol.js";
import type { ContentPart, ImageInput, Message } from "./types.js";

/** Pixels of pictures that came before, while the page holds on to them. */
const known = new WeakMap<object, ImageData>();

/** Takes the pictures out of the messages. */
export async function unpack(messages: Message[], signal?: AbortSignal): Promise<Pick<ChatCall, "messages" | "images">> {
  const images: ImageData[] = [];
  const plain: ChatCall["messages"] = [];
  // What comes here may be JSON of anywhere.
  if (!Array.isArray(messages)) throw new MgmError("invalid-argument", "messages are a list: [{ role, content }, ...]");
  for (const message of messages) {
    const { role, content } = (message as Message | null) ?? {};
    if (typeof role !== "string" || !(typeof content === "string" || Array.isArray(content))) {
      throw new MgmError("invalid-argument", `a message has a role, and a content of text or parts: ${JSON.stringify(message)}`);
    }
    const texts: string[] = [];
    const before = images.length;
    for (const part of typeof content === "string" ? [content] : content) {
      const found = pieceOf(part);
      if (found === undefined) throw new MgmError("invalid-argument", `unknown part of a message: ${JSON.stringify(part)}`);
      if ("text" in found) texts.push(found.text);
      else images.push(typeof found.image === "string" ? await fetchPixels(found.image, signal) : await toPixels(found.image));
      signal?.throwIfAborted();
    }
    plain.push({ role, text: texts.join("\n"), images: images.length - before });
  }
  return { messages: plain, images };
}

/** What a part of a message says: a text, a picture, or a picture's address. */
function pieceOf(part: ContentPart): { text: string } | { image: ImageInput | string } | undefined {
  if (typeof part === "string") return { text: part };
  if (isPicture(part)) return { image: part };
  switch (part?.type) {
    case "text":
      return typeof part.text === "string" ? { text: part.text } : undefined;
    case "image":
      return isPicture(part.image) ? { image: part.image } : undefined;
    case "image_url": {
      const image = part.image_url;
      const inside = typeof image === "object" && !isPicture(image) ? image?.url : image;
      return typeof inside === "string" || isPicture(inside) ? { image: inside } : undefined;
    }
    default:
      return undefined;
  }
}

function isPicture(value: unknown): value is ImageInput {
  const kinds = [
    Blob, ImageBitmap, ImageData, OffscreenCanvas, globalThis.HTMLImageElement, globalThis.HTMLCanvasElement, globalThis.HTMLVideoElement,
  ];
  return kinds.some((kind) => kind !== undefined && value instanceof kind);
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
  let pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  // A canvas forgets the colours behind what is transparent, which count: alpha is dropped, not composited.
  if (hasTransparency(pixels)) pixels = unpremultiplied(bitmap) ?? pixels;
  bitmap.close();
  // What is on a canvas or in a video may change; a file stays as it is.
  if (image instanceof Blob) known.set(image, pixels);
  return pixels;
}

function hasTransparency({ data }: ImageData): boolean {
  for (let at = 3; at < data.length; at += 4) if (data[at] !== 255) return true;
  return false;
}

/** A bitmap's colours as they are, through a texture; nothing where there is no WebGL, or none for so large a picture. */
function unpremultiplied(bitmap: ImageBitmap): ImageData | undefined {
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
