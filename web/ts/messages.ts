// Converts messages of a page to texts and pixels for the worker.

import { MgmError } from "./errors.js";
import { endsEarly } from "./image-file.js";
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

/**
 * Decodes an image. The EXIF orientation is applied, and transparent pixels are over white, as natively. Images of more than
 * {@link MAX_PIXELS} are scaled down: the models reduce images to at most 1536 pixels a side.
 */
export async function toPixels(image: ImageInput): Promise<ImageData> {
  // The page's own pixels stay as they are.
  if (image instanceof ImageData) return hasTransparency(image) ? overWhite(image, new ImageData(image.width, image.height)) : image;
  const found = image instanceof Blob ? decoded.get(image) : undefined;
  if (found) return found;
  if (image instanceof Blob) {
    const bytes = new Uint8Array(await image.arrayBuffer());
    if (endsEarly(bytes)) throw new MgmError("image", `the file is cut off after ${bytes.length} bytes: copy or download it again`);
  }
  let bitmap: ImageBitmap;
  try {
    bitmap = await createImageBitmap(image, BITMAP);
    const scale = Math.sqrt(MAX_PIXELS / (bitmap.width * bitmap.height));
    if (scale < 1) bitmap = await resized(bitmap, scale);
  } catch (cause) {
    const what = image instanceof Blob ? `a file of type ${JSON.stringify(image.type)}` : "this";
    throw new MgmError("image", `${what} is not an image that this browser can decode`, { cause });
  }
  try {
    const pixels = await readPixels(bitmap);
    // Blobs are immutable; a canvas or a video may change.
    if (image instanceof Blob) decoded.set(image, pixels);
    return pixels;
  } finally {
    bitmap.close();
  }
}

/** The largest image that is read at its full size, in pixels. Phones have cameras of 48 megapixels, and 1 to 1.5 GB for a page. */
const MAX_PIXELS = 4096 * 4096;
/** Side of the canvas through which pixels are read. Canvases are limited, in iOS to 16.7 megapixels. */
const TILE = 1024;

const BITMAP = { colorSpaceConversion: "none", premultiplyAlpha: "none" } as const;

/** Scales a bitmap down, and closes it. */
async function resized(bitmap: ImageBitmap, scale: number): Promise<ImageBitmap> {
  const [resizeWidth, resizeHeight] = [bitmap.width, bitmap.height].map((side) => Math.max(1, Math.floor(side * scale))) as [number, number];
  try {
    return await createImageBitmap(bitmap, { ...BITMAP, resizeWidth, resizeHeight, resizeQuality: "high" });
  } finally {
    bitmap.close();
  }
}

async function readPixels(bitmap: ImageBitmap): Promise<ImageData> {
  const { width, height } = bitmap;
  const canvas = new OffscreenCanvas(Math.min(width, TILE), Math.min(height, TILE));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  if (!context) throw new MgmError("image", "this browser provides no canvas to read pixels from");
  checkReadback(context);
  // Replaces what the canvas has, instead of blending.
  context.globalCompositeOperation = "copy";
  const pixels = new ImageData(width, height);
  try {
    for (let y = 0; y < height; y += TILE) {
      for (let x = 0; x < width; x += TILE) {
        const [columns, rows] = [Math.min(TILE, width - x), Math.min(TILE, height - y)];
        context.drawImage(bitmap, x, y, columns, rows, 0, 0, columns, rows);
        const { data } = context.getImageData(0, 0, columns, rows);
        for (let row = 0; row < rows; row++) {
          pixels.data.set(data.subarray(row * columns * 4, (row + 1) * columns * 4), ((y + row) * width + x) * 4);
        }
      }
    }
  } catch (cause) {
    if ((cause as Error).name !== "SecurityError") throw new MgmError("image", `the image's pixels cannot be read: ${String(cause)}`, { cause });
    const message =
      "the image is from another site, so its pixels cannot be read: the other site must send CORS headers, and an <img> or <video> needs " +
      "the attribute crossorigin";
    throw new MgmError("cors", message, { cause });
  }
  if (!hasTransparency(pixels)) return pixels;
  // A canvas rounds the colours of transparent pixels, or loses them.
  const exact = (await unpremultiplied(bitmap)) ?? pixels;
  return overWhite(exact, exact);
}

/** Writes the pixels over white to `target`, rounded to the nearest value. */
function overWhite({ data }: ImageData, target: ImageData): ImageData {
  for (let at = 0; at < data.length; at += 4) {
    const alpha = data[at + 3] as number;
    for (let channel = at; channel < at + 3; channel++) {
      target.data[channel] = Math.floor(((data[channel] as number) * alpha + 255 * (255 - alpha)) / 255 + 0.5);
    }
    target.data[at + 3] = 255;
  }
  return target;
}

/** Fails if the browser returns other pixels than were drawn, as Firefox does with `privacy.resistFingerprinting`. */
function checkReadback(context: OffscreenCanvasRenderingContext2D): void {
  const colour = [18, 52, 86, 255];
  context.fillStyle = `rgb(${colour.slice(0, 3).join()})`;
  context.fillRect(0, 0, 8, 8);
  // Some browsers change the last bits of some pixels, which does no harm.
  const wrong = context.getImageData(0, 0, 1, 1).data.some((value, at) => Math.abs(value - (colour[at] ?? 0)) > 4);
  if (!wrong) return;
  const message = "this browser hides the pixels of images from pages, to protect against fingerprinting: allow this site to read canvases";
  throw new MgmError("image", message);
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
