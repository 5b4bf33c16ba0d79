// PNG files that say what they were made with.

/** The length, the type and the checksum of a chunk, around its data. */
const CHUNK_FRAME = 12;
/** The signature and the first chunk, IHDR, behind which other chunks may stand. */
const HEAD_BYTES = 8 + CHUNK_FRAME + 13;

/** A picture as a PNG file with texts under keywords of ASCII. */
export async function toPng(pixels: ImageData, texts: Record<string, string>): Promise<Blob> {
  const canvas = new OffscreenCanvas(pixels.width, pixels.height);
  canvas.getContext("2d")?.putImageData(pixels, 0, 0);
  const plain = await canvas.convertToBlob({ type: "image/png" });
  const chunks = Object.entries(texts).map(([keyword, text]) => textChunk(keyword, text));
  return new Blob([plain.slice(0, HEAD_BYTES), ...chunks, plain.slice(HEAD_BYTES)], { type: "image/png" });
}

/** "tEXt" for what is ASCII, which every reader knows, else "iTXt" in UTF-8. */
function textChunk(keyword: string, text: string): Uint8Array<ArrayBuffer> {
  const plain = /^[\0-\x7f]*$/.test(text);
  // Behind an iTXt keyword: its end, no compression, its method, no language, no translated keyword.
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
