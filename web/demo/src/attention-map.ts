// Draws an attention map over its image.

import type { AttentionMap } from "mgm-webgpu";

/** Maximum number of squares that mark the highest weights. */
const MARKS = 12;
/** Side of a square, as a fraction of the map's. */
const MARK_SIDE = 1 / 24;

/** Draws the image, dark where weights are low, with squares around the highest weights. */
export async function drawAttentionMap(canvas: HTMLCanvasElement, image: Blob, map: AttentionMap): Promise<void> {
  const bitmap = await createImageBitmap(image);
  const scale = Math.min(1, 1024 / Math.max(bitmap.width, bitmap.height));
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  if (!context) return;
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();

  // The map covers the padded square that the model sees; the image is a part of it.
  const side = map.size;
  const shade = new ImageData(side, side);
  let highest = 0;
  for (const weight of map.weights) highest = Math.max(highest, weight);
  for (const [index, weight] of map.weights.entries()) {
    shade.data[4 * index + 3] = 200 * (1 - Math.sqrt(weight / (highest || 1)));
  }
  const mask = new OffscreenCanvas(side, side);
  mask.getContext("2d")?.putImageData(shade, 0, 0);
  const { x, y, width, height } = map.image;
  context.imageSmoothingEnabled = true;
  context.drawImage(mask, x * side, y * side, width * side, height * side, 0, 0, canvas.width, canvas.height);

  context.strokeStyle = "#ffd43b";
  for (const { column, row, weight } of highestCells(map)) {
    const size = (MARK_SIDE / width) * canvas.width;
    const across = (((column + 0.5) / side - x) / width) * canvas.width;
    const down = (((row + 0.5) / side - y) / height) * canvas.height;
    context.lineWidth = 1 + 4 * weight;
    context.strokeRect(across - size / 2, down - size / 2, size, size);
  }
}

/** The cells with the highest weights, no two in one square. Weights are relative to the highest. */
function highestCells({ size, weights }: AttentionMap): { column: number; row: number; weight: number }[] {
  const order = Array.from(weights.keys()).sort((a, b) => (weights[b] ?? 0) - (weights[a] ?? 0));
  const distance = size * MARK_SIDE;
  const marks: { column: number; row: number; weight: number }[] = [];
  const highest = weights[order[0] ?? 0] || 1;
  for (const cell of order) {
    if (marks.length === MARKS) break;
    const [column, row] = [cell % size, Math.floor(cell / size)];
    const isFree = marks.every((mark) => Math.max(Math.abs(mark.column - column), Math.abs(mark.row - row)) >= distance);
    if (isFree) marks.push({ column, row, weight: (weights[cell] ?? 0) / highest });
  }
  return marks;
}
