// What the model looked at, over the picture.

import type { LookMap } from "mgm-webgpu";

/** Draws the picture, dark where nothing was mined and bright where the weights are. */
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
}
