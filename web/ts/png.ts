// PNG files with text chunks. The browser encodes the pixels but writes no text; a PNG library would encode them in JavaScript.

/** Bytes of a chunk in addition to its data: length, type and checksum. */
const CHUNK_FRAME = 12;
/** Bytes of the signature and of the first chunk, IHDR. Other chunks may follow it. */
const HEAD_BYTES = 8 + CHUNK_FRAME + 13;

/** Encodes an image as PNG with texts. Keywords are ASCII. */
export async function toPng(pixels: ImageData, texts: Record<string, string>): Promise<Blob> {
  const canvas = new OffscreenCanvas(pixels.width, pixels.height);
  canvas.getContext("2d")?.putImageData(pixels, 0, 0);
  const plain = await canvas.convertToBlob({ type: "image/png" });
  const chunks = Object.entries(texts).map(([keyword, text]) => textChunk(keyword, text));
  return new Blob([plain.slice(0, HEAD_BYTES), ...chunks, plain.slice(HEAD_BYTES)], { type: "image/png" });
}

/** A tEXt chunk for ASCII, which all readers know; otherwise an iTXt chunk in UTF-8. */
function textChunk(keyword: string, text: string): Uint8Array<ArrayBuffer> {
  const plain = /^[\0-\x7f]*$/.test(text);
  // After an iTXt keyword: terminator, compression flag and method, empty language tag, empty translated keyword.
  const data = new TextEncoder().encode(plain ? `${keyword}\0${text}` : `${keyword}\0\0\0\0\0${text}`);
  const chunk = new Uint8Array(CHUNK_FRAME + data.length);
  const view = new DataView(chunk.buffer);
  view.setUint32(0, data.length);
  chunk.set(new TextEncoder().encode(plain ? "tEXt" : "iTXt"), 4);
  chunk.set(data, 8);
  view.setUint32(8 + data.length, crc32(chunk.subarray(4, 8 + data.length)));
  return chunk;
}

function crc32(bytes: Uint8Array): number {
  let crc = ~0;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc >>> 0;
}
