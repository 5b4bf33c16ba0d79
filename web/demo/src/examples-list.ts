// The examples of the welcome text.

import { send } from "./conversation.js";
import { $, showError } from "./dom.js";
import { type Example, EXAMPLES } from "./examples.js";
import { type Choice, choices, megabytes } from "./models.js";
import { loadModel } from "./models-dialog.js";
import { refresh, state } from "./state.js";

/** Shows the examples, if models for them are bundled with the page. */
export async function showExamples(): Promise<void> {
  const bundled = (await choices()).filter((choice) => choice.bundled);
  const chatModel = bundled.find(({ imageGeneration }) => !imageGeneration);
  const imageModel = bundled.find(({ imageGeneration }) => imageGeneration);
  if (!chatModel) return;
  $("examples").replaceChildren(...EXAMPLES.map((example) => exampleElement(example, () => void tryExample(example, chatModel, imageModel).catch(showError))));
  const bytes = megabytes(chatModel.bytes + (imageModel?.bytes ?? 0));
  $("try-text").textContent = `Try one with ${chatModel.name}, a small model that is bundled with this page (${bytes}):`;
  $("try").hidden = false;
}

/** Asks an example's question. Loads the chat model first, and the image model when it is needed or else afterwards. */
async function tryExample(example: Example, chatModel: Choice, imageModel: Choice | undefined): Promise<void> {
  if (state.busy) return;
  const addImageModel = async () => {
    if (imageModel && state.mgm && !state.mgm.info.imageModel) await loadModel(imageModel.url, imageModel.name, true);
  };
  if (!state.mgm?.info.vision) await loadModel(chatModel.url, chatModel.name, false);
  if (example.asksForImage) await addImageModel();
  if (!state.mgm?.info.vision || (example.asksForImage && !state.mgm.info.imageModel)) return;
  state.attachments = await fetchImage(example);
  $<HTMLTextAreaElement>("question").value = example.question;
  state.isImageButtonPressed = example.asksForImage ?? false;
  await send();
  state.isImageButtonPressed = false;
  refresh();
  await addImageModel();
}

async function fetchImage({ image }: Example): Promise<Blob[]> {
  if (!image) return [];
  const response = await fetch(image);
  if (!response.ok) throw new Error(`the example's image could not be fetched: ${response.status}`);
  return [await response.blob()];
}

function exampleElement({ image, question }: Example, onPress: () => void): HTMLLIElement {
  const button = document.createElement("button");
  button.type = "button";
  button.onclick = onPress;
  button.append(image ? imageElement(image) : placeholderElement(), question);
  const item = document.createElement("li");
  item.append(button);
  return item;
}

function imageElement(address: string): HTMLImageElement {
  const image = document.createElement("img");
  image.src = address;
  image.alt = "";
  return image;
}

/** Shown for an image that is yet to be generated. */
function placeholderElement(): HTMLElement {
  const placeholder = document.createElement("div");
  placeholder.className = "blank";
  placeholder.ariaHidden = "true";
  placeholder.textContent = "✎";
  return placeholder;
}
