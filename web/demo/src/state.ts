// The state that the parts of the page share, and the controls that depend on it.

import type { Mgm, Progress } from "mgm-webgpu";
import { $, announce } from "./dom.js";
import { megabytes } from "./models.js";
import { type Entry, loadSettings } from "./store.js";

export const settings = loadSettings();

export const state = {
  /** The conversation. */
  entries: [] as Entry[],
  /** Images to send with the next question. */
  attachments: [] as Blob[],
  mgm: undefined as Mgm | undefined,
  /** Names of the loaded models: the chat model, the image model. */
  modelNames: [] as string[],
  /** The world that the chat model is limited to: see `ListedModel`. */
  knowsOnly: undefined as string | undefined,
  /** Whether the visitor gave images to this conversation, other than those of examples. */
  hasOwnImages: false,
  /** Whether the button that asks for an image is pressed. */
  isImageButtonPressed: false,
  /** Aborts what is in progress. */
  busy: undefined as AbortController | undefined,
};

/** Whether the next question asks for an image. */
export function asksForImage(): boolean {
  const info = state.mgm?.info;
  return info?.imageModel !== undefined && (state.isImageButtonPressed || !info.chat);
}

/** Updates the controls. */
export function refresh(): void {
  const { entries, mgm, busy } = state;
  const isAnswering = busy !== undefined && mgm !== undefined;
  $("welcome").hidden = entries.length > 0;
  $("send").hidden = isAnswering;
  $("stop").hidden = !isAnswering;
  $<HTMLButtonElement>("export").disabled = entries.length === 0;
  $<HTMLButtonElement>("new").disabled = entries.length === 0 && busy === undefined;
  $<HTMLButtonElement>("model").disabled = busy !== undefined;
  $("request-image").hidden = !mgm?.info.imageModel;
  $("world").hidden = !(state.knowsOnly && state.hasOwnImages);
  $("request-image").ariaPressed = String(asksForImage());
  $<HTMLTextAreaElement>("question").placeholder = asksForImage() ? "Describe the image to generate" : "Ask about an image";
}

const PHASES: Record<Progress["phase"], string> = {
  download: "Downloading", import: "Downloading and quantising", load: "Loading onto the GPU", recover: "The GPU device was lost; loading again", check: "Checking",
  tune: "Measuring kernels",
};

/** What was announced last. */
let announced = "";

export function showProgress({ phase, part, loaded, total }: Progress): void {
  $("status").hidden = false;
  // Every change would be too much to listen to.
  const quarter = total ? Math.floor((4 * loaded) / total) * 25 : 0;
  const spoken = `${PHASES[phase]}${quarter > 0 && quarter < 100 ? `: ${quarter} %` : ""}`;
  if (spoken !== announced) announce((announced = spoken));
  const amount = total === undefined ? String(loaded) : `${megabytes(loaded)} of ${megabytes(total)}`;
  $("status-text").textContent = `${PHASES[phase]}${phase === "download" ? ` (${part})` : ""}: ${amount}`;
  $<HTMLProgressElement>("progress").value = total ? loaded / total : 0;
  // A load in the middle of an answer: the answer follows.
  if (state.mgm && loaded === total) $("status").hidden = true;
}
