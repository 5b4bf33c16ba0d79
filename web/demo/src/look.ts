// What the model looked at, over the picture.

import type { LookMap } from "mgm-webgpu";

/** Squares that mark the strongest places, at most. */
const MARKS = 12;
/** A square's side, in parts of the map's. */
const MARK_SIDE = 1 / 24;

/** Draws the picture, dark where nothing was mined and bright where the weights are, and marks the strongest places. */
export async function drawLook(canvas: HTMLCanvasElement, image: Blob, map: LookMap): Promise<void> {
  const bitmap = await createImageBitmap(image);
  const scale = Math.min(1, 1024 / Math.max(bitmap.width, bitmap.height));
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  if (!context) return;
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();

  // The map covers the padded square that the model sees; the picture is its middle.
  const side = map.size;
  const shade = new ImageData(side, side);
  let most = 0;
  for (const weight of map.weights) most = Math.max(most, weight);
  for (const [index, weight] of map.weights.entries()) {
    shade.data[4 * index + 3] = 200 * (1 - Math.sqrt(weight / (most || 1)));
  }
  const mask = new OffscreenCanvas(side, side);
  mask.getContext("2d")?.putImageData(shade, 0, 0);
  const { x, y, width, height } = map.picture;
  context.imageSmoothingEnabled = true;
  context.drawImage(mask, x * side, y * side, width * side, height * side, 0, 0, canvas.width, canvas.height);

  context.strokeStyle = "#ffd43b";
  for (const { column, row, weight } of strongest(map)) {
    const size = (MARK_SIDE / width) * canvas.width;
    const across = (((column + 0.5) / side - x) / width) * canvas.width;
    const down = (((row + 0.5) / side - y) / height) * canvas.height;
    context.lineWidth = 1 + 4 * weight;
    context.strokeRect(across - size / 2, down - size / 2, size, size);
  }
}

/** The cells of the largest weights, no two in one square; weights in parts of the largest. */
function strongest({ size, weights }: LookMap): { column: number; row: number; weight: number }[] {
  const order = Array.from(weights.keys()).sort((a, b) => (weights[b] ?? 0) - (weights[a] ?? 0));
  const apart = size * MARK_SIDE;
  const marks: { column: number; row: number; weight: number }[] = [];
  const most = weights[order[0] ?? 0] || 1;
  for (const cell of order) {
    if (marks.length === MARKS) break;
    const [column, row] = [cell % size, Math.floor(cell / size)];
    const free = marks.every((mark) => Math.max(Math.abs(mark.column - column), Math.abs(mark.row - row)) >= apart);
    if (free) marks.push({ column, row, weight: (weights[cell] ?? 0) / most });
  }
  return marks;
}
