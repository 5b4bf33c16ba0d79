// The generated image of an answer, and its progress.

import type { ImageStep } from "mgm-webgpu";
import { objectUrl } from "./object-url.js";
import type { Entry } from "./store.js";

/** Creates the element of an answer's image. It is hidden until there is something to show. */
export function generatedImageElement(entry: Entry) {
  const element = document.createElement("figure");
  element.className = "generated";
  const progress = document.createElement("progress");
  const status = document.createElement("p");
  status.className = "muted";
  const preview = document.createElement("canvas");
  preview.className = "preview";
  preview.ariaHidden = "true";
  const showStep = ({ done, total, preview: pixels }: ImageStep) => {
    element.hidden = false;
    progress.max = total;
    progress.value = done;
    progress.ariaLabel = status.textContent = done < total ? `Generating the image: step ${done} of ${total}` : "Decoding the image";
    if (pixels) {
      preview.width = pixels.width;
      preview.height = pixels.height;
      preview.getContext("2d")?.putImageData(pixels, 0, 0);
    }
    if (!progress.isConnected) element.replaceChildren(preview, status, progress);
  };
  const update = () => {
    element.hidden = !entry.generated;
    if (!entry.generated) {
      element.replaceChildren();
      return;
    }
    const { png, prompt, seed, width, height } = entry.generated;
    const image = document.createElement("img");
    image.src = objectUrl(png);
    // Reserves the space before the image is decoded.
    [image.width, image.height] = [width, height];
    image.alt = `Generated: ${prompt}`;
    const caption = document.createElement("figcaption");
    const save = document.createElement("a");
    save.href = image.src;
    save.download = `image-${seed}.png`;
    save.textContent = "Save";
    caption.append(`${prompt} `, save);
    element.replaceChildren(image, caption);
  };
  update();
  return { element, showStep, update };
}
