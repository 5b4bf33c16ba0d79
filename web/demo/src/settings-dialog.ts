// The settings dialog.

import { limits, Mgm } from "mgm-webgpu";
import { $, messageOf } from "./dom.js";
import { settings } from "./state.js";
import { DEFAULT_SETTINGS, saveSettings } from "./store.js";

const FIELDS = ["theme", "temperature", "tokens", "system", "steps", "guidance-scale", "side"];

export function showSettings(): void {
  document.documentElement.dataset["theme"] = settings.theme;
  $<HTMLSelectElement>("theme").value = settings.theme;
  $<HTMLInputElement>("temperature").value = String(settings.temperature);
  $("temperature-value").textContent = settings.temperature === 0 ? "0: always the most likely token" : String(settings.temperature);
  $<HTMLInputElement>("tokens").value = String(settings.maxNewTokens);
  $<HTMLTextAreaElement>("system").value = settings.system;
  $<HTMLInputElement>("steps").value = String(settings.steps);
  $<HTMLInputElement>("guidance-scale").value = String(settings.guidanceScale);
  $<HTMLSelectElement>("side").value = String(settings.side);
}

/** The number in a field, within the limits; `fallback` if the field has none. */
function numberIn(id: string, [min, max]: readonly [number, number], fallback: number): number {
  const text = $<HTMLInputElement>(id).value;
  const value = text === "" ? NaN : Number(text);
  return Math.min(max, Math.max(min, Number.isNaN(value) ? fallback : value));
}

function readSettings(): void {
  settings.theme = $<HTMLSelectElement>("theme").value as typeof settings.theme;
  settings.temperature = Number($<HTMLInputElement>("temperature").value);
  settings.maxNewTokens = Math.floor(numberIn("tokens", [1, Infinity], DEFAULT_SETTINGS.maxNewTokens));
  settings.system = $<HTMLTextAreaElement>("system").value.trim();
  settings.steps = Math.floor(numberIn("steps", [1, limits.numInferenceSteps], DEFAULT_SETTINGS.steps));
  settings.guidanceScale = numberIn("guidance-scale", [0, limits.guidanceScale], DEFAULT_SETTINGS.guidanceScale);
  settings.side = Number($<HTMLSelectElement>("side").value);
  saveSettings(settings);
  showSettings();
}

async function checkDevice(): Promise<void> {
  const result = $("check-result");
  result.textContent = "Comparing every kernel with its reference …";
  try {
    const cases = await Mgm.selfCheck();
    const failed = cases.filter(({ failure }) => failure);
    result.textContent =
      failed.length === 0
        ? `All ${cases.length} kernels are correct on this device.`
        : `${failed.length} of ${cases.length} kernels are wrong on this device, so answers would make no sense. First: ${failed[0]?.failure}`;
  } catch (error) {
    result.textContent = messageOf(error);
  }
}

export function listenToSettings(): void {
  $("settings").onclick = () => {
    showSettings();
    $<HTMLDialogElement>("preferences").showModal();
  };
  $<HTMLInputElement>("steps").max = String(limits.numInferenceSteps);
  $<HTMLInputElement>("guidance-scale").max = String(limits.guidanceScale);
  for (const id of FIELDS) $(id).onchange = readSettings;
  $("temperature").oninput = readSettings;
  $("check").onclick = () => void checkDevice();
}
