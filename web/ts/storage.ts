// Where bundles are kept on this device: the Origin Private File System, one folder a bundle.
//
//   mgm/<key of the URL>/source.json          what it is, for `cache.list()`
//   mgm/<key of the URL>/bundle.json          the manifest
//   mgm/<key of the URL>/<sha256>             a whole and checked file
//   mgm/<key of the URL>/<sha256>.part        one that is on its way
//   mgm/tuning.json                           which kernels are the fastest on this device, if it was measured

import { MgmError } from "./errors.js";
import { fetchManifest } from "./fetching.js";
import { isPainter, parseManifest } from "./manifest.js";

const ROOT = "mgm";
const SOURCE = "source.json";
const TUNING = "tuning.json";

/** A bundle that is kept on this device. */
export interface CachedBundle {
  url: string;
  /** The model's name. */
  name: string;
  /** Bytes of all its files. */
  bytes: number;
  /** Bytes of them that are here already. */
  cachedBytes: number;
  /** Whether it can be loaded offline. */
  complete: boolean;
  /** Whether it is a model that paints. */
  paints: boolean;
}

/** What is remembered of a bundle. */
export interface SourceRecord {
  url: string;
  name: string;
  paints?: boolean;
  files: { sha256: string; bytes: number }[];
}

async function root(create: boolean): Promise<FileSystemDirectoryHandle | undefined> {
  try {
    const origin = await navigator.storage.getDirectory();
    return await origin.getDirectoryHandle(ROOT, { create });
  } catch (cause) {
    if (!create && cause instanceof DOMException && cause.name === "NotFoundError") return undefined;
    throw new MgmError(
      "storage",
      "this page cannot keep files on this device (private windows often cannot): load with { cache: false }",
      { cause },
    );
  }
}

/** The name of the folder of the bundle at `url`. */
export async function keyOf(url: string): Promise<string> {
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(url));
  return Array.from(new Uint8Array(digest, 0, 16), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** The folder of the bundle at `url`, made if it is not there. */
export async function bundleFolder(url: string): Promise<FileSystemDirectoryHandle> {
  const folder = await root(true);
  if (!folder) throw new MgmError("storage", "the folder of models could not be made");
  return folder.getDirectoryHandle(await keyOf(url), { create: true });
}

/** The file, or nothing if it is not there. */
export async function getFile(folder: FileSystemDirectoryHandle, name: string): Promise<File | undefined> {
  try {
    return await (await folder.getFileHandle(name)).getFile();
  } catch (error) {
    if (error instanceof DOMException && error.name === "NotFoundError") return undefined;
    throw error;
  }
}

/** Writes a small file, whole or not at all. */
export async function putText(folder: FileSystemDirectoryHandle, name: string, text: string): Promise<void> {
  const handle = await folder.getFileHandle(name, { create: true });
  const writable = await handle.createWritable();
  await writable.write(text);
  await writable.close();
}

/** Remembers what is in the folder, and removes what no longer belongs there. */
export async function remember(folder: FileSystemDirectoryHandle, record: SourceRecord): Promise<void> {
  await putText(folder, SOURCE, JSON.stringify(record));
  const wanted = new Set(record.files.flatMap(({ sha256 }) => [sha256, `${sha256}.part`]));
  const names: string[] = [];
  for await (const name of folder.keys()) names.push(name);
  for (const name of names) {
    if (!name.endsWith(".json") && !wanted.has(name)) await folder.removeEntry(name);
  }
}

/** What was measured of a device's kernels, and of which. */
interface KeptTuning {
  device: string;
  tuning: string;
}

/** What was measured of this device's kernels, if anything was: that of another one counts as nothing. The device is asked for its
 *  name only then. */
export async function keptTuning(device: () => Promise<string>): Promise<string | undefined> {
  try {
    const folder = await root(false);
    const text = folder && (await (await getFile(folder, TUNING))?.text());
    const kept = text ? (JSON.parse(text) as KeptTuning | null) : undefined;
    return kept && kept.device === (await device()) ? kept.tuning : undefined;
  } catch (error) {
    // Without storage nothing is kept, and what is damaged is measured again.
    if (error instanceof MgmError || error instanceof SyntaxError) return undefined;
    throw error;
  }
}

/** Keeps what was measured of this device's kernels. */
export async function keepTuning(device: string, tuning: string): Promise<void> {
  const folder = await root(true);
  if (folder) await putText(folder, TUNING, JSON.stringify({ device, tuning } satisfies KeptTuning));
}

/** What the bundle at `url` is, from this device or from its server. */
export async function identifyBundle(url: string, signal = new AbortController().signal): Promise<{ name: string; paints: boolean }> {
  const kept = await root(false).then(
    async (folder) => folder && getFile(await folder.getDirectoryHandle(await keyOf(url)), SOURCE),
  ).catch(() => undefined);
  if (kept) {
    const { name, paints = false } = JSON.parse(await kept.text()) as SourceRecord;
    return { name, paints };
  }
  const manifest = parseManifest(await fetchManifest(url, 1, signal), url);
  return { name: manifest.name, paints: isPainter(manifest) };
}

/** The bundles that are kept on this device. */
async function list(): Promise<CachedBundle[]> {
  const folder = await root(false);
  const bundles: CachedBundle[] = [];
  if (!folder) return bundles;
  for await (const entry of folder.values()) {
    if (entry.kind !== "directory") continue;
    const file = await getFile(entry, SOURCE);
    if (!file) continue;
    const record = JSON.parse(await file.text()) as SourceRecord;
    let complete = true;
    let bytes = 0;
    let cachedBytes = 0;
    for (const { sha256, bytes: size } of record.files) {
      const whole = await getFile(entry, sha256);
      complete &&= whole?.size === size;
      bytes += size;
      cachedBytes += whole?.size ?? (await getFile(entry, `${sha256}.part`))?.size ?? 0;
    }
    bundles.push({ url: record.url, name: record.name, bytes, cachedBytes, complete, paints: record.paints ?? false });
  }
  return bundles;
}

/** Removes the bundle that came from `url`; all bundles without one. Models that are loaded now go on, and are
 *  downloaded again only if their device is lost. */
async function remove(url?: string | URL): Promise<void> {
  const folder = await root(false);
  if (!folder) return;
  const keys: string[] = [];
  if (url === undefined) {
    for await (const key of folder.keys()) keys.push(key);
  } else {
    keys.push(await keyOf(bundleUrl(url)));
  }
  for (const key of keys) {
    try {
      await folder.removeEntry(key, { recursive: true });
    } catch (error) {
      const name = error instanceof DOMException ? error.name : "";
      if (name === "NotFoundError") continue;
      if (name !== "NoModificationAllowedError") throw error;
      throw new MgmError("storage", "the model is being downloaded, here or in another tab: stop that first", { cause: error });
    }
  }
}

/** The address of a bundle's folder, with a slash at its end. */
export function bundleUrl(url: string | URL, base?: string): string {
  let address: URL;
  try {
    address = new URL(url, base ?? globalThis.location.href);
  } catch (cause) {
    throw new MgmError("invalid-argument", `${JSON.stringify(String(url))} is not an address`, { cause });
  }
  address.hash = "";
  if (address.pathname.endsWith("/bundle.json")) address.pathname = address.pathname.slice(0, -"bundle.json".length);
  if (!address.pathname.endsWith("/")) address.pathname += "/";
  return address.href;
}

/** The models that are kept on this device. */
export const cache = { list, delete: remove };
