// Which models there are: those that this site lists, and those that are on this device.

import { bundleUrl, cache, Mgm } from "mgm-webgpu";

/** An entry of `models.json`, beside the page. */
export interface ListedModel {
  name: string;
  url: string;
  /** Bytes to download, about what it takes on the GPU. */
  bytes: number;
  /** Whether it paints, beside one that answers. */
  paints?: boolean;
  /** Whether the page's examples are for it: the first such that answers and the first that paints are loaded when one is tried. */
  starts?: boolean;
  about?: string;
}

export interface Choice extends ListedModel {
  /** Whether it is on this device already. */
  here: boolean;
  /** Why it may not run here. */
  doubt?: string;
}

export const megabytes = (bytes: number): string =>
  bytes >= 1e9 ? `${(bytes / 1e9).toFixed(1)} GB` : `${Math.max(1, Math.round(bytes / 1e6))} MB`;

/** What the picker shows, those of this device first. */
export async function choices(): Promise<Choice[]> {
  const support = await Mgm.support();
  const kept = await cache.list().catch(() => []);
  const listed = await fetch("models.json")
    .then((response) => (response.ok ? (response.json() as Promise<ListedModel[]>) : []))
    .catch(() => []);
  const all = new Map<string, Choice>();
  for (const model of listed) {
    const url = bundleUrl(model.url);
    all.set(url, { ...model, url, here: false });
  }
  for (const { url, name, bytes, complete, paints } of kept) {
    all.set(url, { ...(all.get(url) ?? { name, url, bytes }), paints, here: complete });
  }
  const room = support.storage ? support.storage.quota - support.storage.usage : Infinity;
  return [...all.values()]
    .map((choice) => {
      const tooLarge = support.maxWeightBytes !== undefined && choice.bytes > support.maxWeightBytes;
      if (!choice.here && choice.bytes > room) return { ...choice, doubt: "not enough room on this device" };
      return tooLarge ? { ...choice, doubt: "may not fit into this device's memory" } : choice;
    })
    .sort((a, b) => Number(b.here) - Number(a.here));
}

/** This device in a sentence. */
export async function device(): Promise<string> {
  const { supported, reason, adapter, features, storage } = await Mgm.support();
  if (!supported || !adapter) return reason ?? "";
  const name = adapter.description || [adapter.vendor, adapter.architecture].filter(Boolean).join(" ") || "a GPU";
  const extras = [features?.shaderF16 && "16-bit floats", features?.subgroups && "subgroups"].filter(Boolean).join(", ");
  const room = storage ? `; ${megabytes(storage.quota - storage.usage)} free for models` : "";
  return `This device: ${name}${adapter.software ? " (played by the CPU: slow)" : ""}${extras ? ` with ${extras}` : ""}${room}.`;
}
