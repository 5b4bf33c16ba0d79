// Images to send with the next question.

import { $, showNotice } from "./dom.js";
import { objectUrl } from "./object-url.js";
import { refresh, state } from "./state.js";

export function attach(files: Iterable<File>): void {
  const all = [...files];
  const images = all.filter((file) => file.type.startsWith("image/"));
  const others = all.filter((file) => !images.includes(file)).map((file) => file.name || file.type);
  if (others.length > 0) showNotice(`Not an image: ${others.join(", ")}`);
  state.attachments = [...state.attachments, ...images];
  state.hasOwnImages ||= images.length > 0;
  showAttachments();
  refresh();
  if (images.length > 0) $("question").focus();
}

export function showAttachments(): void {
  const items = state.attachments.map((image, index) => {
    const item = document.createElement("li");
    const preview = document.createElement("img");
    preview.src = objectUrl(image);
    preview.alt = `Image ${index + 1}`;
    const remove = document.createElement("button");
    remove.type = "button";
    remove.textContent = "×";
    remove.setAttribute("aria-label", `Remove image ${index + 1}`);
    remove.onclick = () => {
      state.attachments = state.attachments.filter((other) => other !== image);
      state.hasOwnImages = [...state.attachments, ...state.entries.flatMap(({ images }) => images)].length > 0;
      showAttachments();
      refresh();
      $("question").focus();
    };
    item.append(preview, remove);
    return item;
  });
  $("attachments").replaceChildren(...items);
}

export function listenToAttachments(): void {
  $("attach").onclick = () => $("files").click();
  $("take-photo").onclick = () => $("camera").click();
  for (const id of ["files", "camera"]) {
    const input = $<HTMLInputElement>(id);
    input.onchange = () => {
      attach(input.files ?? []);
      input.value = "";
    };
  }
  document.onpaste = (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.some((file) => file.type.startsWith("image/"))) {
      event.preventDefault();
      attach(files);
    }
  };
  // The events of nested elements come in pairs.
  let depth = 0;
  const changeDepth = (change: number) => {
    depth = Math.max(0, depth + change);
    document.body.classList.toggle("dropping", depth > 0);
  };
  document.ondragenter = (event) => event.dataTransfer?.types.includes("Files") && changeDepth(1);
  document.ondragleave = () => changeDepth(-1);
  document.ondragover = (event) => event.preventDefault();
  document.ondrop = (event) => {
    event.preventDefault();
    changeDepth(-depth);
    attach(event.dataTransfer?.files ?? []);
  };
}
