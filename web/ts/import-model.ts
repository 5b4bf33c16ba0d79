// Imports models that are released as checkpoints: converts them to bundles while they are downloaded, and stores the bundle on this
// device. The checkpoint is never held whole. For the worker.

import { Conversion, Sha256 } from "./wasm/mgm_web.js";
import { type Bundle, checkSpace, type DownloadOptions, NO_SPACE, withBundleFolder } from "./download.js";
import { MgmError } from "./errors.js";
import { openAccess } from "./file-access.js";
import { findModel } from "./hub.js";
import { type BundleFile, MANIFEST } from "./manifest.js";
import type { HubSource } from "./protocol.js";
import type { RemoteFile } from "./remote-file.js";
import { getFile, IMPORT, putRecord, putText, readJson, refusable } from "./storage.js";
import type { ModelInspection } from "./types.js";

/** See `Plan` of `web/src/conversion.rs`. */
interface ConversionPlan {
  precision: string;
  imageGeneration: boolean;
  files: { file: string; bytes: number }[];
  shards: { file: string; part: string; bytes: number; sourceBytes: number }[];
}

/** The content of `import.json`: which files of the bundle are on this device. */
interface ImportRecord {
  /** The commits of the original files. */
  version: string;
  precision: string;
  /** In the order of the plan; `null` for those that are missing. */
  files: (BundleFile | null)[];
  shards: (BundleFile | null)[];
}

export interface ImportOptions extends Pick<DownloadOptions, "cache" | "signal" | "onProgress" | "onStoring"> {
  precision: string | undefined;
  /** Throws if the model is of the wrong kind. */
  accept: (summary: ModelInspection) => void;
}

/** What receives the bytes of a file. */
interface Sink {
  write(bytes: Uint8Array<ArrayBuffer>): void;
}

/** Where the files of a bundle go. */
interface Store {
  /** Stores what `produce` writes, under its digest. */
  put(name: string, produce: (sink: Sink) => Promise<void>): Promise<Pick<BundleFile, "bytes" | "sha256">>;
}

/** Returns what an import would download and store, without doing it. */
export async function inspectImport(source: HubSource, precision: string | undefined, signal: AbortSignal): Promise<ModelInspection> {
  return withPlan(source, precision, signal, (_conversion, plan, { name }) => Promise.resolve(inspection(name, plan)));
}

/** The files of the bundle of a model, by name. Imports those that are not on this device. */
export function importModel(url: string, source: HubSource, options: ImportOptions): Promise<Bundle> {
  const stored = async (folder: FileSystemDirectoryHandle) =>
    (await finishedImport(folder, options.precision)) ?? withStorage(url, folder, source, options);
  return withBundleFolder(url, options, stored, () => inMemory(source, options));
}

/** The files of a finished import, unless it has another precision. */
async function finishedImport(folder: FileSystemDirectoryHandle, precision: string | undefined): Promise<Map<string, Blob> | undefined> {
  const record = await readJson<ImportRecord>(folder, IMPORT);
  const manifest = await getFile(folder, MANIFEST);
  if (!record || !manifest || (precision !== undefined && precision !== record.precision)) return undefined;
  const files = new Map<string, Blob>([[MANIFEST, manifest]]);
  for (const entry of [...record.files, ...record.shards]) {
    const file = entry && (await getFile(folder, entry.sha256));
    if (file?.size !== entry?.bytes || !entry || !file) return undefined;
    files.set(entry.file, file);
  }
  return files;
}

async function withStorage(
  url: string,
  folder: FileSystemDirectoryHandle,
  source: HubSource,
  options: ImportOptions,
): Promise<Map<string, Blob>> {
  return withPlan(source, options.precision, options.signal, async (conversion, plan, { name, version }) => {
    options.accept(inspection(name, plan));
    const record = await resumed(folder, plan, version);
    const summary = { name, imageGeneration: plan.imageGeneration };
    const save = async () => {
      // A file that is missing has no digest yet: `cache.list()` counts its planned bytes.
      const planned = [...plan.files, ...plan.shards];
      const files = [...record.files, ...record.shards].map((entry, index) => entry ?? { sha256: pending(index), bytes: planned[index]?.bytes ?? 0 });
      await putRecord(folder, { url, ...summary, files });
      await putText(folder, IMPORT, JSON.stringify(record));
    };
    await refusable(async () => {
      await save();
      // Some browsers refuse only these handles.
      (await openAccess(await folder.getFileHandle(`${pending(0)}.part`, { create: true }))).close();
    });
    await folder.removeEntry(MANIFEST).catch(() => undefined);
    options.onStoring();
    await checkSpace(plan.shards.filter((_, index) => !record.shards[index]).reduce((sum, { bytes }) => sum + bytes, 0));
    await convert(conversion, plan, record, new StoredFiles(folder), options, save);
    await putText(folder, MANIFEST, conversion.manifest(JSON.stringify(record)));
    const files = await finishedImport(folder, undefined);
    if (!files) throw new MgmError("storage", `${name} was deleted from this device during the import`);
    return files;
  });
}

async function inMemory(source: HubSource, options: ImportOptions): Promise<Map<string, Blob>> {
  return withPlan(source, options.precision, options.signal, async (conversion, plan, { name, version }) => {
    options.accept(inspection(name, plan));
    const record = emptyRecord(plan, version);
    const store = new BlobFiles();
    await convert(conversion, plan, record, store, options, () => Promise.resolve());
    const files = new Map([[MANIFEST, new Blob([conversion.manifest(JSON.stringify(record))])]]);
    for (const entry of [...record.files, ...record.shards]) {
      const blob = entry && store.blobs.get(entry.sha256);
      if (blob) files.set(entry.file, blob);
    }
    return files;
  });
}

/** Writes the missing files of a bundle, and calls `save` after each. */
async function convert(
  conversion: Conversion,
  plan: ConversionPlan,
  record: ImportRecord,
  store: Store,
  { signal, onProgress }: ImportOptions,
  save: () => Promise<void>,
): Promise<void> {
  const total = plan.shards.reduce((sum, { sourceBytes }) => sum + sourceBytes, 0);
  let loaded = 0;
  onProgress("tokenizer", loaded, total);
  for (const [index, { file }] of plan.files.entries()) {
    if (record.files[index]) continue;
    const bytes = conversion.file(index) as Uint8Array<ArrayBuffer>;
    const stored = await store.put(pending(index), (sink) => Promise.resolve(sink.write(bytes)));
    record.files[index] = { file, part: "tokenizer", ...stored };
  }
  await save();
  for (const [index, { file, part, bytes, sourceBytes }] of plan.shards.entries()) {
    if (!record.shards[index]) {
      let written = 0;
      const stored = await store.put(pending(plan.files.length + index), (sink) =>
        conversion.shard(index, (chunk: Uint8Array<ArrayBuffer>) => {
          signal.throwIfAborted();
          sink.write(chunk);
          written += chunk.length;
          onProgress(part, loaded + sourceBytes * Math.min(written / bytes, 1), total);
        }),
      );
      record.shards[index] = { file, part, ...stored };
      await save();
    }
    loaded += sourceBytes;
    onProgress(part, loaded, total);
  }
}

/** Plans a conversion and passes it to `work`. An error of the network replaces the core's error about the file. */
async function withPlan<T>(
  source: HubSource,
  precision: string | undefined,
  signal: AbortSignal,
  work: (conversion: Conversion, plan: ConversionPlan, model: { name: string; version: string }) => Promise<T>,
): Promise<T> {
  const { name, files, version } = await findModel(source, signal);
  let conversion: Conversion | undefined;
  try {
    conversion = await Conversion.plan(files, JSON.stringify({ name, ...(precision !== undefined && { precision }) }));
    return await work(conversion, JSON.parse(conversion.description()) as ConversionPlan, { name, version });
  } catch (error) {
    signal.throwIfAborted();
    throw failureOf(files) ?? error;
  } finally {
    conversion?.free();
    for (const file of files.values()) file.close();
  }
}

function failureOf(files: Map<string, RemoteFile>): unknown {
  return [...files.values()].find(({ failure }) => failure !== undefined)?.failure;
}

function inspection(name: string, { imageGeneration, files, shards, precision }: ConversionPlan): ModelInspection {
  const copied = files.reduce((sum, { bytes }) => sum + bytes, 0);
  return {
    name,
    imageGeneration,
    precision,
    downloadBytes: copied + shards.reduce((sum, { sourceBytes }) => sum + sourceBytes, 0),
    storedBytes: copied + shards.reduce((sum, { bytes }) => sum + bytes, 0),
  };
}

function emptyRecord({ precision, files, shards }: ConversionPlan, version: string): ImportRecord {
  return { version, precision, files: files.map(() => null), shards: shards.map(() => null) };
}

/** The record of an interrupted import of the same files at the same precision, or an empty one. */
async function resumed(folder: FileSystemDirectoryHandle, plan: ConversionPlan, version: string): Promise<ImportRecord> {
  const empty = emptyRecord(plan, version);
  const found = await readJson<ImportRecord>(folder, IMPORT);
  const same =
    found?.version === version && found.precision === plan.precision &&
    found.shards.length === plan.shards.length && found.files.length === plan.files.length;
  if (!found || !same) return empty;
  const check = async (entry: BundleFile | null) => (entry && (await getFile(folder, entry.sha256))?.size === entry.bytes ? entry : null);
  return { ...empty, files: await Promise.all(found.files.map(check)), shards: await Promise.all(found.shards.map(check)) };
}

/** The name of a file without a digest. */
const pending = (index: number): string => `pending-${index}`;

/** Files in a folder of the Origin Private File System. */
class StoredFiles implements Store {
  constructor(readonly folder: FileSystemDirectoryHandle) {}

  async put(name: string, produce: (sink: Sink) => Promise<void>): Promise<Pick<BundleFile, "bytes" | "sha256">> {
    const handle = await this.folder.getFileHandle(`${name}.part`, { create: true });
    const access = await openAccess(handle);
    const hash = new Sha256();
    let bytes = 0;
    let sha256: string;
    try {
      access.truncate(0);
      await produce({
        write(chunk) {
          if (access.write(chunk, { at: bytes }) !== chunk.length) throw new MgmError("quota", NO_SPACE);
          hash.update(chunk);
          bytes += chunk.length;
        },
      });
      access.flush();
      sha256 = hash.finish();
    } catch (error) {
      hash.free();
      throw error;
    } finally {
      access.close();
    }
    // A model may have two files with the same content.
    if (await getFile(this.folder, sha256)) await this.folder.removeEntry(`${name}.part`);
    else await handle.move(sha256);
    return { bytes, sha256 };
  }
}

/** Files in memory, or in temporary files of the browser. */
class BlobFiles implements Store {
  readonly blobs = new Map<string, Blob>();

  async put(_name: string, produce: (sink: Sink) => Promise<void>): Promise<Pick<BundleFile, "bytes" | "sha256">> {
    const hash = new Sha256();
    const parts: Uint8Array<ArrayBuffer>[] = [];
    try {
      await produce({
        write(chunk) {
          hash.update(chunk);
          parts.push(chunk);
        },
      });
    } catch (error) {
      hash.free();
      throw error;
    }
    const blob = new Blob(parts);
    const sha256 = hash.finish();
    this.blobs.set(sha256, blob);
    return { bytes: blob.size, sha256 };
  }
}

