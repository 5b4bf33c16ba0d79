// Bundles on this device, in the Origin Private File System, one folder per bundle:
//
//   mgm/<key of the URL>/source.json          what the bundle is, for `cache.list()`
//   mgm/<key of the URL>/bundle.json          the manifest
//   mgm/<key of the URL>/import.json          of an imported checkpoint: which files are complete
//   mgm/<key of the URL>/<sha256>             a complete, verified file
//   mgm/<key of the URL>/<sha256>.part        an incomplete file
//   mgm/tuning.json                           the fastest kernels on this device, after `Mgm.tune`

import { bundleUrl, hubHeaders, isGguf } from "./env.js";
import { MgmError } from "./errors.js";
import { fetchManifest, fetchManifestOnce, StatusError } from "./http.js";
import { MANIFEST, parseManifest, summary } from "./manifest.js";
import type { HubSource } from "./protocol.js";
import type { ModelInspection, ModelSummary } from "./types.js";

const ROOT = "mgm";
const SOURCE = "source.json";
/** The name of the record of an import. */
export const IMPORT = "import.json";
const TUNING = "tuning.json";

/** A bundle on this device. */
export interface CachedBundle {
  url: string;
  /** The model's name. */
  name: string;
  /** Bytes of all files. */
  bytes: number;
  /** Bytes that are on this device. */
  cachedBytes: number;
  /** Whether the model loads without a network. */
  complete: boolean;
  /** Whether it is an image model. */
  imageGeneration: boolean;
}

/** The content of `source.json`. */
export interface SourceRecord extends ModelSummary {
  url: string;
  files: { sha256: string; bytes: number }[];
}

/** The browser does not let this page store files, as in many private windows. */
export class StorageRefused extends MgmError {
  constructor(cause: unknown) {
    super("storage", `this page cannot store files on this device (private windows often cannot): ${String(cause)}`, { cause });
  }
}

/** Failures of storage that are no refusal: an abort, a full disk, a file in use elsewhere, a file or folder that is not there. */
const ORDINARY = new Set(["AbortError", "QuotaExceededError", "NoModificationAllowedError", "NotFoundError"]);

/** Runs work with storage. @throws StorageRefused */
export async function refusable<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    // Browsers name refusals differently, and a missing function is a TypeError.
    const refused = error instanceof DOMException ? !ORDINARY.has(error.name) : error instanceof TypeError;
    throw refused ? new StorageRefused(error) : error;
  }
}

async function root(create: boolean): Promise<FileSystemDirectoryHandle | undefined> {
  return refusable(async () => {
    const origin = await navigator.storage.getDirectory();
    try {
      return await origin.getDirectoryHandle(ROOT, { create });
    } catch (error) {
      if (!create && isNotFound(error)) return undefined;
      throw error;
    }
  });
}

/** The folder of models, if this page can store files and has stored one. */
async function stored(): Promise<FileSystemDirectoryHandle | undefined> {
  try {
    return await root(false);
  } catch (error) {
    if (error instanceof StorageRefused) return undefined;
    throw error;
  }
}

const isNotFound = (error: unknown): boolean => error instanceof DOMException && error.name === "NotFoundError";

/** The folder name of the bundle at `url`. */
async function keyOf(url: string): Promise<string> {
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(url));
  return Array.from(new Uint8Array(digest, 0, 16), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** The folder of the bundle at `url`; creates it if needed. */
export async function bundleFolder(url: string): Promise<FileSystemDirectoryHandle> {
  const folder = await root(true);
  const key = await keyOf(url);
  return refusable(() => folder!.getDirectoryHandle(key, { create: true }));
}

/** A file, if it exists. */
export async function getFile(folder: FileSystemDirectoryHandle, name: string): Promise<File | undefined> {
  try {
    return await (await folder.getFileHandle(name)).getFile();
  } catch (error) {
    if (isNotFound(error)) return undefined;
    throw error;
  }
}

/** The content of a JSON file; `undefined` if there is none, or if it is damaged. */
export async function readJson<T>(folder: FileSystemDirectoryHandle, name: string): Promise<T | undefined> {
  const text = await (await getFile(folder, name))?.text();
  try {
    return text === undefined ? undefined : (JSON.parse(text) as T);
  } catch {
    return undefined;
  }
}

/** Writes a small file atomically. */
export async function putText(folder: FileSystemDirectoryHandle, name: string, text: string): Promise<void> {
  const handle = await folder.getFileHandle(name, { create: true });
  const writable = await handle.createWritable();
  await writable.write(text);
  await writable.close();
}

/** The folder's record; `undefined` if it is missing or damaged. The next download rewrites it. */
export async function getRecord(folder: FileSystemDirectoryHandle): Promise<SourceRecord | undefined> {
  const record = await readJson<SourceRecord>(folder, SOURCE);
  return typeof record?.url === "string" && Array.isArray(record.files) ? record : undefined;
}

/** Writes the folder's record and deletes files that do not belong to the bundle. */
export async function putRecord(folder: FileSystemDirectoryHandle, record: SourceRecord): Promise<void> {
  await putText(folder, SOURCE, JSON.stringify(record));
  const wanted = new Set(record.files.flatMap(({ sha256 }) => [sha256, `${sha256}.part`]));
  const names: string[] = [];
  for await (const name of folder.keys()) names.push(name);
  for (const name of names) {
    if (!name.endsWith(".json") && !wanted.has(name)) await folder.removeEntry(name);
  }
}

/** The content of `tuning.json`. */
interface TuningRecord {
  device: string;
  tuning: string;
}

/** The stored tuning of this device, if there is one. `device` is called only to compare it with a stored one. */
export async function storedTuning(device: () => Promise<string>): Promise<string | undefined> {
  try {
    const folder = await stored();
    const text = folder && (await (await getFile(folder, TUNING))?.text());
    const record = text ? (JSON.parse(text) as TuningRecord | null) : undefined;
    return record && record.device === (await device()) ? record.tuning : undefined;
  } catch (error) {
    // No storage, or a damaged file: as if nothing had been measured.
    if (error instanceof MgmError || error instanceof SyntaxError) return undefined;
    throw error;
  }
}

/** Stores the tuning of this device, if the page can store files. */
export async function storeTuning(device: string, tuning: string): Promise<void> {
  try {
    await refusable(async () => {
      const folder = await root(true);
      if (folder) await putText(folder, TUNING, JSON.stringify({ device, tuning } satisfies TuningRecord));
    });
  } catch (error) {
    if (!(error instanceof StorageRefused)) throw error;
  }
}

/** The stored folder of the bundle at `url`, if there is one. */
async function storedFolder(url: string): Promise<FileSystemDirectoryHandle | undefined> {
  return stored().then(async (folder) => folder?.getDirectoryHandle(await keyOf(url))).catch(() => undefined);
}

/**
 * Returns what the bundle at `url` is, from this device or, if it is not stored, from its server. `undefined` for the folder of a repository
 * without a bundle (`hub`).
 */
export async function inspectBundle(url: string, hub: HubSource | undefined, signal = new AbortController().signal): Promise<ModelInspection | undefined> {
  const folder = await storedFolder(url);
  const record = folder && (await getRecord(folder));
  if (record) {
    const { name, imageGeneration, files } = record;
    let missing = 0;
    for (const { sha256, bytes } of files) missing += (await getFile(folder, sha256))?.size === bytes ? 0 : bytes;
    // The rest of an import can be computed only from the headers of the original files.
    if (missing > 0 && (await getFile(folder, IMPORT))) return undefined;
    return { name, imageGeneration, downloadBytes: missing, storedBytes: sum(files) };
  }
  if (hub && !(await hasBundle(url, hub, signal))) return undefined;
  const manifest = parseManifest(await fetchManifestOnce(url, signal, { headers: hubHeaders(hub) }), url);
  const bytes = sum([...manifest.files, ...manifest.shards]);
  return { ...summary(manifest), downloadBytes: bytes, storedBytes: bytes };
}

/** Whether a folder of a repository holds a bundle: the stored one, or that of the server. */
export async function hasBundle(url: string, hub: HubSource, signal: AbortSignal): Promise<boolean> {
  if (isGguf(hub)) return false;
  const folder = await storedFolder(url);
  if (folder && (await getFile(folder, IMPORT))) return false;
  if (folder && (await getFile(folder, MANIFEST))) return true;
  try {
    await fetchManifest(url, signal, hubHeaders(hub));
    return true;
  } catch (error) {
    // The Hub answers 401 for a repository that does not exist.
    if (error instanceof StatusError && [401, 403, 404].includes(error.status)) return false;
    throw error;
  }
}

const sum = (files: { bytes: number }[]): number => files.reduce((total, { bytes }) => total + bytes, 0);

async function list(): Promise<CachedBundle[]> {
  const folder = await stored();
  const bundles: CachedBundle[] = [];
  if (!folder) return bundles;
  for await (const entry of folder.values()) {
    if (entry.kind !== "directory") continue;
    const record = await getRecord(entry);
    if (!record) continue;
    const { url, name, imageGeneration, files } = record;
    let complete = true;
    let bytes = 0;
    let cachedBytes = 0;
    for (const { sha256, bytes: size } of files) {
      const whole = await getFile(entry, sha256);
      complete &&= whole?.size === size;
      bytes += size;
      cachedBytes += whole?.size ?? (await getFile(entry, `${sha256}.part`))?.size ?? 0;
    }
    bundles.push({ url, name, bytes, cachedBytes, complete, imageGeneration });
  }
  return bundles;
}

async function remove(source?: string | URL): Promise<void> {
  const folder = await stored();
  if (!folder) return;
  const keys: string[] = [];
  if (source === undefined) {
    for await (const key of folder.keys()) keys.push(key);
  } else {
    keys.push(await keyOf(bundleUrl(source)));
  }
  for (const key of keys) {
    try {
      await folder.removeEntry(key, { recursive: true });
    } catch (error) {
      if (isNotFound(error)) continue;
      if (!(error instanceof DOMException) || error.name !== "NoModificationAllowedError") throw error;
      throw new MgmError("storage", "the model is being downloaded, here or in another tab: stop the download first", { cause: error });
    }
  }
}

/** The models on this device. */
export const cache = {
  /** Lists the bundles, complete or not. The list is empty where the page cannot store files. */
  list,
  /**
   * Deletes the bundle of a URL or `"hf:…"` source; without one, all bundles. Loaded models keep working, and download their files again
   * only if their GPU device is lost.
   */
  delete: remove,
};
