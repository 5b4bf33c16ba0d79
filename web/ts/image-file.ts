// The structure of image files. Firefox decodes files that end early, and fills in what is missing.

/** Whether a file is only the beginning of a JPEG, PNG, WebP, GIF or BMP image. */
export function endsEarly(bytes: Uint8Array): boolean {
  const starts = (...expected: number[]) => expected.every((byte, index) => bytes[index] === byte);
  if (starts(0xff, 0xd8)) return !hasJpegEnd(bytes);
  if (starts(0x89, 0x50, 0x4e, 0x47)) return !hasPngEnd(bytes);
  if (starts(0x47, 0x49, 0x46, 0x38)) return !hasGifImage(bytes);
  if (starts(0x52, 0x49, 0x46, 0x46) && bytes[8] === 0x57) return viewOf(bytes).byteLength < 8 + viewOf(bytes).getUint32(4, true);
  if (starts(0x42, 0x4d)) return bytes.length < 6 || bytes.length < viewOf(bytes).getUint32(2, true);
  return false;
}

const viewOf = ({ buffer, byteOffset, byteLength }: Uint8Array) => new DataView(buffer, byteOffset, byteLength);

/** Follows the segments to the end-of-image marker. */
function hasJpegEnd(bytes: Uint8Array): boolean {
  for (let at = 2; ; ) {
    // Entropy-coded data, in which 0xff is followed by 0 or a restart marker, and fill bytes.
    at = bytes.indexOf(0xff, at) + 1;
    const marker = bytes[at];
    if (at === 0 || marker === undefined) return false;
    if (marker === 0xd9) return true;
    if (marker <= 1 || (marker >= 0xd0 && marker <= 0xd7)) at++;
    else if (marker !== 0xff) {
      const [high, low] = [bytes[at + 1], bytes[at + 2]];
      if (high === undefined || low === undefined) return false;
      at += 1 + Math.max(2, high * 256 + low);
    }
  }
}

/** Follows the chunks to the last one, IEND. */
function hasPngEnd(bytes: Uint8Array): boolean {
  const view = viewOf(bytes);
  for (let at = 8; at + 12 <= bytes.length; at += 12 + view.getUint32(at)) {
    if (view.getUint32(at + 4) === 0x49454e44) return true;
  }
  return false;
}

/** Follows the blocks to the end of the first image. */
function hasGifImage(bytes: Uint8Array): boolean {
  const tableSize = (flags = 0) => (flags & 0x80 ? 3 << ((flags & 7) + 1) : 0);
  let at = 13 + tableSize(bytes[10]);
  for (;;) {
    const isImage = bytes[at] === 0x2c;
    if (!isImage && bytes[at] !== 0x21) return false;
    at += isImage ? 11 + tableSize(bytes[at + 9]) : 2;
    // Blocks of data, each with its length before it, up to an empty one.
    for (let length; (length = bytes[at++]) !== 0; at += length) if (length === undefined) return false;
    if (isImage) return true;
  }
}
