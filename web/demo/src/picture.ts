// The picture of an answer: how it comes about, and what it is.

import type { PictureStep } from "mgm-webgpu";
import { addressOf } from "./address.js";
import type { Entry } from "./store.js";

/** An element for an answer's picture, hidden until there is one. */
export function pictureElement(entry: Entry) {
  const element = document.createElement("figure");
  element.className = "painted";
  const progress = document.createElement("progress");
  const says = document.createElement("p");
  says.className = "muted";
  const preview = document.createElement("canvas");
  preview.className = "preview";
  preview.ariaHidden = "true";
  const step = ({ done, total, preview: pixels }: PictureStep) => {
    element.hidden = false;
    progress.max = total;
    progress.value = done;
    progress.ariaLabel = says.textContent = done < total ? `Drawing: step ${done} of ${total}` : "Drawing: the picture in full";
    if (pixels) {
      preview.width = pixels.width;
      preview.height = pixels.height;
      preview.getContext("2d")?.putImageData(pixels, 0, 0);
    }
    if (!progress.isConnected) element.replaceChildren(preview, says, progress);
  };
  const update = () => {
    element.hidden = !entry.picture;
    if (!entry.picture) {
      element.replaceChildren();
      return;
    }
    const { png, prompt, seed, width, height } = entry.picture;
    const image = document.createElement("img");
    image.src = addressOf(png);
    // So that its room is there before it is.
    [image.width, image.height] = [width, height];
    image.alt = `Drawn: ${prompt}`;
    const caption = document.createElement("figcaption");
    const save = document.createElement("a");
    save.href = image.src;
    save.download = `picture-${seed}.png`;
    save.textContent = "Save";
    caption.append(`${prompt} `, save);
    element.replaceChildren(image, caption);
  };
  update();
  return { element, step, update };
}
