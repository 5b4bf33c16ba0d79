// PNG files with text chunks. Not by a canvas: its size is limited, some browsers change its pixels, and it writes no text. A PNG library
// would compress in JavaScript; this leaves that to the browser.

const SIGNATURE = new Uint8Array([137, 80, 78, 71, 13, 10, 26, 10]);
/** Bytes of a chunk in addition to its data: length, type and checksum. */
const CHUNK_FRAME = 12;

/** Encodes an image as PNG with texts, without alpha. Keywords are ASCII. */
export async function toPng(pixels: ImageData, texts: Record<string, string>): Promise<Blob> {
  const header = new Uint8Array(13);
  const view = new DataView(header.buffer);
  view.setUint32(0, pixels.width);
  view.setUint32(4, pixels.height);
  // 8 bits, RGB.
  header.set([8, 2], 8);
  const compressed = new Blob([scanlines(pixels)]).stream().pipeThrough(new CompressionStream("deflate"));
  const data = new Uint8Array(await new Response(compressed).arrayBuffer());
  const notes = Object.entries(texts).map(([keyword, text]) => textChunk(keyword, text));
  const chunks = [chunk("IHDR", header), ...notes, chunk("IDAT", data), chunk("IEND", new Uint8Array())];
  return new Blob([SIGNATURE, ...chunks], { type: "image/png" });
}

/** The rows as RGB, each with the Paeth filter: differences from the most similar neighbour of left, above and above left. */
function scanlines({ width, height, data }: ImageData): Uint8Array<ArrayBuffer> {
  const rows = new Uint8Array(height * (1 + width * 3));
  let to = 0;
  for (let y = 0; y < height; y++) {
    rows[to++] = 4;
    for (let x = 0; x < width; x++) {
      for (let colour = 0; colour < 3; colour++) {
        const at = (y * width + x) * 4 + colour;
        const left = x > 0 ? data[at - 4]! : 0;
        const above = y > 0 ? data[at - 4 * width]! : 0;
        const corner = x > 0 && y > 0 ? data[at - 4 * width - 4]! : 0;
        const [toLeft, toAbove, toCorner] = [Math.abs(above - corner), Math.abs(left - corner), Math.abs(left + above - 2 * corner)];
        const nearest = toLeft <= toAbove && toLeft <= toCorner ? left : toAbove <= toCorner ? above : corner;
        rows[to++] = data[at]! - nearest;
      }
    }
  }
  return rows;
}

/** A tEXt chunk for ASCII, which all readers know; otherwise an iTXt chunk in UTF-8. */
function textChunk(keyword: string, text: string): Uint8Array<ArrayBuffer> {
  const plain = /^[\0-\x7f]*$/.test(text);
  // After an iTXt keyword: terminator, compression flag and method, empty language tag, empty translated keyword.
  const data = new TextEncoder().encode(plain ? `${keyword}\0${text}` : `${keyword}\0\0\0\0\0${text}`);
  return chunk(plain ? "tEXt" : "iTXt", data);
}

function chunk(type: string, data: Uint8Array): Uint8Array<ArrayBuffer> {
  const chunk = new Uint8Array(CHUNK_FRAME + data.length);
  const view = new DataView(chunk.buffer);
  view.setUint32(0, data.length);
  chunk.set(new TextEncoder().encode(type), 4);
  chunk.set(data, 8);
  view.setUint32(8 + data.length, crc32(chunk.subarray(4, 8 + data.length)));
  return chunk;
}

/** The checksum of each byte. */
const CRCS = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = (byte >>> 1) ^ (byte & 1 ? 0xedb88320 : 0);
  return byte;
});

function crc32(bytes: Uint8Array): number {
  let crc = ~0;
  for (const byte of bytes) crc = (crc >>> 8) ^ CRCS[(crc ^ byte) & 255]!;
  return ~crc >>> 0;
}
