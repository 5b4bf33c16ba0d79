// The available models: those that this site lists, and those on this device.

import { bundleUrl, cache, Mgm, type Support } from "mgm-webgpu";

/** An entry of `models.json`, next to the page. */
export interface ListedModel {
  name: string;
  /** The address of a bundle, or `"hf:…"` for a model on the Hugging Face Hub. */
  url: string;
  /** Bytes on this device. */
  bytes: number;
  /** Bytes on the GPU with a conversation of 2,048 tokens, or while an image is generated. An estimate; absent: about `bytes`. */
  memoryBytes?: number;
  /** Bytes to download, if they are not the same: the model is quantised on the way. An estimate. */
  downloadBytes?: number;
  /** In a few words, for models that the site does not host. */
  licence?: string;
  /** Whether it is an image model. */
  imageGeneration?: boolean;
  /** Whether the page's examples use it: the first bundled chat model and the first bundled image model. */
  bundled?: boolean;
  about?: string;
  /** The world that the model is limited to. The page says so to visitors who give it images of their own. */
  knowsOnly?: string;
}

export interface Choice extends ListedModel {
  /** What to load: the listed address. */
  source: string;
  /** Whether it is completely on this device. */
  isCached: boolean;
  /** Why it may not run here. */
  warning?: string;
}

export const megabytes = (bytes: number): string =>
  bytes >= 1e9 ? `${(bytes / 1e9).toFixed(1)} GB` : `${Math.max(1, Math.round(bytes / 1e6))} MB`;

/** The models to choose from, those on this device first. */
export async function choices(): Promise<Choice[]> {
  const support = await Mgm.support();
  const cached = await cache.list().catch(() => []);
  const listed = await fetch("models.json")
    .then((response) => (response.ok ? (response.json() as Promise<ListedModel[]>) : []))
    .catch(() => []);
  const all = new Map<string, Choice>();
  for (const model of listed) {
    const url = bundleUrl(model.url);
    all.set(url, { ...model, source: model.url, url, isCached: false });
  }
  for (const { url, name, bytes, complete, imageGeneration } of cached) {
    all.set(url, { ...(all.get(url) ?? { name, source: url, url, bytes }), imageGeneration, isCached: complete });
  }
  return [...all.values()]
    .map((choice) => {
      const warning = warningOf(choice, support);
      return warning === undefined ? choice : { ...choice, warning };
    })
    .sort((a, b) => Number(b.isCached) - Number(a.isCached));
}

/** Why a model may not run on this device; `undefined` if nothing is known against it. */
export function warningOf({ bytes, memoryBytes = bytes, isCached }: Choice, { maxWeightBytes, storage, canStore }: Support): string | undefined {
  const space = storage && canStore ? storage.quota - storage.usage : Infinity;
  if (!isCached && bytes > space) return `not enough space on this device: ${megabytes(space)} are free`;
  if (maxWeightBytes === undefined || memoryBytes <= maxWeightBytes) return undefined;
  return `may not fit into this device's memory: a page can use about ${megabytes(maxWeightBytes)}`;
}

/** A sentence about this device. */
export async function deviceDescription(): Promise<string> {
  const { supported, reason, adapter, features, canStore, storage } = await Mgm.support();
  if (!supported || !adapter) return reason ?? "";
  const name = adapter.description || [adapter.vendor, adapter.architecture].filter(Boolean).join(" ") || "a GPU";
  const extras = [features?.shaderF16 && "16-bit floats", features?.subgroups && "subgroups"].filter(Boolean).join(" and ");
  const free = storage ? `; ${megabytes(storage.quota - storage.usage)} free for models` : "";
  const space = canStore ? free : "; this window stores no models, so each visit downloads them";
  return `This device: ${name}${adapter.software ? " (software adapter: slow)" : ""}${extras ? ` with ${extras}` : ""}${space}.`;
}
