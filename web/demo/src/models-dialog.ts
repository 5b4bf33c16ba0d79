// Choosing and loading models.

import { bundleUrl, cache, Mgm } from "mgm-webgpu";
import { $, announce, showError, showNotice } from "./dom.js";
import { type Choice, choices, deviceDescription, megabytes, warningOf } from "./models.js";
import { refresh, settings, showProgress, state } from "./state.js";
import { saveSettings } from "./store.js";

/** Loads a model. It replaces the loaded models, except that an image model loads next to a chat model. */
export async function loadModel(source: string | File[], name: string, isImageModel?: boolean): Promise<void> {
  if (state.busy) return;
  $<HTMLDialogElement>("models").close();
  showNotice("");
  const stop = new AbortController();
  state.busy = stop;
  refresh();
  const { signal } = stop;
  // If the model cannot be inspected, loading it reports why.
  const imageGeneration = isImageModel ?? (await Mgm.inspect(source, { signal }).then((summary) => summary.imageGeneration, () => false));
  const chatModel = imageGeneration && state.mgm?.info.chat ? state.mgm : undefined;
  if (!chatModel) {
    state.mgm?.dispose();
    state.mgm = undefined;
    state.modelNames = [];
    state.knowsOnly = undefined;
  }
  refresh();
  $("model-name").textContent = [...state.modelNames, name].join(" + ");
  try {
    if (chatModel) await chatModel.loadImageModel(source, { signal });
    else state.mgm = await Mgm.load(source, { signal, onProgress: showProgress });
    const precision = chatModel ? chatModel.info.imageModel?.precision : state.mgm?.info.precision;
    state.modelNames = [...state.modelNames.slice(0, 1), `${name} · ${precision}`];
    if (typeof source === "string") {
      settings[imageGeneration ? "imageModel" : "model"] = bundleUrl(source);
      if (!chatModel && imageGeneration) settings.model = "";
      saveSettings(settings);
      if (!chatModel) await showWorld(bundleUrl(source));
    }
    announce(`${state.modelNames.join(" and ")}: ready`);
    $("question").focus();
  } catch (error) {
    showError(error);
  } finally {
    state.busy = undefined;
    $("model-name").textContent = state.modelNames.join(" + ") || "Choose a model";
    $("status").hidden = true;
    refresh();
  }
}

/** Finds out which world the loaded model is limited to. */
async function showWorld(url: string): Promise<void> {
  const known = (await choices()).find((choice) => choice.url === url);
  state.knowsOnly = known?.knowsOnly;
  if (!known?.knowsOnly) return;
  $("world-text").textContent = `${known.name} knows only ${known.knowsOnly}. It does not recognise what a photograph shows.`;
}

/** Loads a model of an earlier visit, if it is on this device. */
export async function restoreModel(url: string): Promise<void> {
  const known = url && (await choices()).find((choice) => choice.isCached && choice.url === url);
  if (known) await loadModel(known.source, known.name, known.imageGeneration);
}

async function choose(choice: Choice): Promise<void> {
  const { source, name, imageGeneration } = choice;
  if (!choice.isCached && choice.licence !== undefined && !(await confirmImport(choice))) return;
  await loadModel(source, name, imageGeneration);
  // A chat model replaces both.
  if (!imageGeneration && state.mgm?.info.chat) await restoreModel(settings.imageModel);
}

/** Asks the visitor before a released model is downloaded, with its exact sizes, and says if it may not run here. */
async function confirmImport(choice: Choice): Promise<boolean> {
  const { source, name, licence = "", bytes, memoryBytes = bytes } = choice;
  showNotice(`Reading the size of ${name}…`);
  const [sizes, support] = await Promise.all([Mgm.inspect(source), Mgm.support()]).finally(() => showNotice(""));
  const { downloadBytes = 0, storedBytes = 0, precision = "" } = sizes;
  const size = `${megabytes(downloadBytes)} from the Hugging Face Hub, ${megabytes(storedBytes)} on this device (${precision})`;
  const warning = warningOf({ ...choice, bytes: storedBytes, memoryBytes: storedBytes + memoryBytes - bytes }, support);
  return confirm(`${name}: ${size}. ${warning ? `Warning: ${warning}. ` : ""}Licence: ${licence}. Download it?`);
}

export async function showModels(): Promise<void> {
  const list = $("model-list");
  if (!$<HTMLDialogElement>("models").open) $<HTMLDialogElement>("models").showModal();
  $("device").textContent = await deviceDescription();
  const all = await choices();
  const [chatModels, imageModels] = [false, true].map((kind) => all.filter(({ imageGeneration = false }) => imageGeneration === kind)) as [Choice[], Choice[]];
  list.replaceChildren(...chatModels.map(choiceElement));
  $("image-model-list").replaceChildren(...imageModels.map(choiceElement));
  $("image-models").hidden = imageModels.length === 0;
  if (chatModels.length === 0) {
    const hint = document.createElement("li");
    hint.textContent = "This page lists no models: load one from a URL, or from files on this device.";
    list.replaceChildren(hint);
  }
  (list.querySelector("button") ?? $("model-url")).focus();
}

function choiceElement(choice: Choice): HTMLLIElement {
  const item = document.createElement("li");
  const about = document.createElement("div");
  const name = document.createElement("div");
  name.className = "name";
  name.textContent = choice.name;
  const facts = document.createElement("div");
  facts.className = "muted";
  const { bytes, downloadBytes = bytes, memoryBytes, licence } = choice;
  const size = `${megabytes(bytes)}, ${choice.isCached ? "on this device" : "to download"}`;
  const sizes = choice.isCached || downloadBytes === bytes ? size : `about ${megabytes(downloadBytes)} to download, ${megabytes(bytes)} on this device`;
  const memory = memoryBytes !== undefined && `about ${megabytes(memoryBytes)} of GPU memory`;
  facts.textContent = [sizes, memory, choice.warning, choice.about, licence && `licence: ${licence}`].filter(Boolean).join(" · ");
  about.append(name, facts);
  const use = document.createElement("button");
  use.type = "button";
  use.textContent = choice.isCached ? "Use" : "Download";
  use.setAttribute("aria-label", `${use.textContent} ${choice.name}`);
  use.onclick = () => void choose(choice).catch(showError);
  item.append(about, use);
  if (choice.isCached) {
    const remove = document.createElement("button");
    remove.type = "button";
    remove.textContent = "Delete";
    remove.setAttribute("aria-label", `Delete ${choice.name} from this device`);
    remove.onclick = () => void cache.delete(choice.url).then(showModels, showError);
    item.append(remove);
  }
  return item;
}

export function listenToModels(): void {
  $("model").onclick = $("welcome-model").onclick = $("world-model").onclick = () => void showModels().catch(showError);
  $("model-load").onclick = () => {
    const url = $<HTMLInputElement>("model-url");
    if (url.value && url.reportValidity()) void loadModel(url.value, new URL(url.value).pathname.split("/").filter(Boolean).at(-1) ?? "model");
  };
  $("model-files").onclick = () => $("model-file-input").click();
  $("model-folder").onclick = () => $("model-folder-input").click();
  for (const id of ["model-file-input", "model-folder-input"]) {
    const input = $<HTMLInputElement>(id);
    input.onchange = () => {
      const files = [...(input.files ?? [])];
      if (files.length > 0) void loadModel(files, files[0]?.webkitRelativePath.split("/")[0] || (files[0]?.name ?? "model"));
      input.value = "";
    };
  }
}
