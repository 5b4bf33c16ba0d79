// Downloads bundles to this device: in parallel, resumable, verified, in only one tab at a time. For the worker.
//
// No caching library: they use the Cache API, which stores only whole responses, so an interrupted shard could not resume.

import { MgmError } from "./errors.js";
import { openAccess } from "./file-access.js";
import {
  anySignal, chunksOf, fetchManifest, fetchManifestOnce, LONG_PATIENCE, rejectWebPage, request, Retries, retry, STALL_LIMIT_WITH_COPY,
} from "./http.js";
import { type BundleFile, MANIFEST, type Manifest, parseManifest, summary } from "./manifest.js";
import { bundleFolder, getFile, getRecord, putRecord, putText, refusable, StorageRefused } from "./storage.js";
import { storageEstimate } from "./support.js";

/** Concurrent downloads. */
const PARALLEL = 4;
/** Bytes per read when the digest of existing data is computed. */
const CHECK_BYTES = 4 << 20;

export const NO_SPACE = "there is not enough space for the model on this device: free some with cache.list() and cache.delete()";

/** A running SHA-256. */
export interface Hash {
  update(bytes: Uint8Array): void;
  finish(): string;
  free(): void;
}

export interface DownloadOptions {
  cache: boolean;
  signal: AbortSignal;
  /** Throws if the bundle is of the wrong kind. */
  accept: (manifest: Manifest) => void;
  /** Of every request. */
  headers: Record<string, string>;
  newHash: () => Hash;
  onProgress: (part: string, loaded: number, total: number) => void;
  /** Called when files are about to be stored on this device. */
  onStoring: () => void;
}

/** The files of a bundle. */
export interface Bundle {
  files: Map<string, Blob>;
  /** Whether they are stored on this device. */
  stored: boolean;
}

/** Returns the files of the bundle at `url` by name, and downloads those that are not on this device. */
export function getBundle(url: string, options: DownloadOptions): Promise<Bundle> {
  const stored = (folder: FileSystemDirectoryHandle) => withStorage(url, folder, options);
  return withBundleFolder(url, options, stored, () => withoutStorage(url, options));
}

/** Runs `stored` with the folder of the bundle at `url`, or `unstored` where this page cannot store files or `cache` is false. */
export async function withBundleFolder(
  url: string,
  { cache, signal }: Pick<DownloadOptions, "cache" | "signal">,
  stored: (folder: FileSystemDirectoryHandle) => Promise<Map<string, Blob>>,
  unstored: () => Promise<Map<string, Blob>>,
): Promise<Bundle> {
  try {
    if (cache) {
      const folder = await bundleFolder(url);
      // If another tab downloads the bundle, wait for it and use its files.
      return { files: await navigator.locks.request(`mgm:${url}`, { signal }, () => stored(folder)), stored: true };
    }
  } catch (error) {
    signal.throwIfAborted();
    // A SecurityError comes from the lock.
    if (error instanceof DOMException && error.name !== "SecurityError") throw storageError(error);
    if (!(error instanceof StorageRefused || error instanceof DOMException)) throw error;
    // Load the model without storing it: `ModelInfo.stored` is then false.
  }
  return { files: await unstored(), stored: false };
}

function storageError(cause: DOMException): MgmError {
  if (cause.name === "QuotaExceededError") return new MgmError("quota", NO_SPACE, { cause });
  const hint = cause.name === "NoModificationAllowedError" ? "another tab or a page in the history uses the file" : "was the storage of this site cleared?";
  return new MgmError("storage", `a file of the model could not be stored on this device (${hint}): ${String(cause)}`, { cause });
}

async function withStorage(
  url: string,
  folder: FileSystemDirectoryHandle,
  options: DownloadOptions,
): Promise<Map<string, Blob>> {
  const { text, manifest, fresh } = await manifestOf(url, folder, options);
  options.accept(manifest);
  const entries = distinct(manifest);
  const total = entries.reduce((sum, { bytes }) => sum + bytes, 0);
  const found = new Map<string, Blob>();
  const missing: BundleFile[] = [];
  let loaded = 0;
  for (const entry of entries) {
    const file = await getFile(folder, entry.sha256);
    if (file?.size === entry.bytes) {
      found.set(entry.sha256, file);
      loaded += entry.bytes;
    } else {
      missing.push(entry);
    }
  }
  if (missing.length > 0 || fresh || !(await getRecord(folder))) {
    await refusable(async () => {
      await putRecord(folder, { url, ...summary(manifest), files: entries });
      if (fresh) await putText(folder, MANIFEST, text);
      // Some browsers refuse only these handles.
      if (missing[0]) (await openAccess(await partOf(folder, missing[0]))).close();
    });
  }
  await checkSpace(await neededBytes(folder, missing));
  if (missing.length > 0) options.onStoring();
  options.onProgress(missing[0]?.part ?? "language", loaded, total);
  const advance = (entry: BundleFile, bytes: number) => {
    loaded += bytes;
    options.onProgress(entry.part, loaded, total);
  };
  await inParallel(missing, options.signal, async (entry, signal) => {
    await download(new URL(entry.file, url).href, folder, entry, { ...options, signal }, (bytes) => advance(entry, bytes));
    const file = await getFile(folder, entry.sha256);
    if (!file) throw new MgmError("storage", `${entry.file} was deleted from this device during the download`);
    found.set(entry.sha256, file);
  });
  return named(manifest, text, found);
}

/** The incomplete file of an entry. */
const partOf = (folder: FileSystemDirectoryHandle, { sha256 }: BundleFile): Promise<FileSystemFileHandle> =>
  folder.getFileHandle(`${sha256}.part`, { create: true });

/** Files with distinct contents: a bundle may contain the same vocabulary twice. */
function distinct({ files, shards }: Manifest): BundleFile[] {
  return [...new Map([...files, ...shards].map((entry) => [entry.sha256, entry])).values()];
}

/** All files by name. */
function named({ files, shards }: Manifest, manifest: string, found: Map<string, Blob>): Map<string, Blob> {
  const blobs = new Map<string, Blob>([[MANIFEST, new Blob([manifest])]]);
  for (const { file, sha256 } of [...files, ...shards]) {
    const blob = found.get(sha256);
    if (blob) blobs.set(file, blob);
  }
  return blobs;
}

/** The manifest from the server, or the copy on this device if the server does not deliver one. */
async function manifestOf(url: string, folder: FileSystemDirectoryHandle, { headers, signal }: DownloadOptions) {
  const copy = await (await getFile(folder, MANIFEST))?.text();
  if (copy === undefined || !isManifest(copy, url)) {
    const text = await fetchManifest(url, signal, headers);
    return { text, manifest: parseManifest(text, url), fresh: true };
  }
  try {
    const text = await fetchManifestOnce(url, signal, { headers, stallLimit: STALL_LIMIT_WITH_COPY });
    return { text, manifest: parseManifest(text, url), fresh: text !== copy };
  } catch {
    // Whatever is wrong with the network or the server, the copy works.
    signal.throwIfAborted();
    return { text: copy, manifest: parseManifest(copy, url), fresh: false };
  }
}

/** Whether a stored manifest is intact. */
function isManifest(text: string, url: string): boolean {
  try {
    return parseManifest(text, url) !== undefined;
  } catch {
    return false;
  }
}

async function neededBytes(folder: FileSystemDirectoryHandle, missing: BundleFile[]): Promise<number> {
  let needed = 0;
  for (const entry of missing) {
    needed += entry.bytes - ((await getFile(folder, `${entry.sha256}.part`))?.size ?? 0);
  }
  return needed;
}

/** Fails if there is no space for `needed` more bytes. */
export async function checkSpace(needed: number): Promise<void> {
  const { quota = Infinity, usage = 0 } = (await storageEstimate()) ?? {};
  if (needed > quota - usage) {
    const megabytes = (bytes: number) => `${Math.ceil(Math.max(bytes, 0) / 1e6)} MB`;
    throw new MgmError("quota", `${NO_SPACE} (needed: ${megabytes(needed)}, free: ${megabytes(quota - usage)})`);
  }
}

/** Downloads one file and verifies it. */
async function download(
  url: string,
  folder: FileSystemDirectoryHandle,
  entry: BundleFile,
  options: DownloadOptions,
  advance: (bytes: number) => void,
): Promise<void> {
  const handle = await partOf(folder, entry);
  const access = await openAccess(handle);
  let verified = false;
  try {
    // If the digest is wrong, the part from an earlier download may be damaged: start again once.
    for (let attempt = 0; !verified && attempt < 2; attempt++) {
      const hash = options.newHash();
      try {
        await fill(url, access, entry, hash, options, advance);
      } catch (error) {
        hash.free();
        throw error;
      }
      verified = hash.finish() === entry.sha256;
      if (!verified) {
        access.truncate(0);
        advance(-entry.bytes);
      }
    }
    access.flush();
  } finally {
    access.close();
  }
  if (!verified) throw wrongDigest(url);
  await handle.move(entry.sha256);
}

/** Downloads the rest of a file. Reconnects after failures. */
async function fill(
  url: string,
  access: FileSystemSyncAccessHandle,
  entry: BundleFile,
  hash: Hash,
  { headers: common, signal }: DownloadOptions,
  advance: (bytes: number) => void,
): Promise<void> {
  let size = access.getSize();
  if (size > entry.bytes) {
    access.truncate(0);
    size = 0;
  }
  const buffer = new Uint8Array(Math.min(CHECK_BYTES, size));
  for (let at = 0; at < size; ) {
    const read = access.read(buffer, { at });
    hash.update(buffer.subarray(0, Math.min(read, size - at)));
    at += read;
    advance(read);
  }
  const retries = new Retries(url, signal, LONG_PATIENCE);
  while (size < entry.bytes) {
    try {
      const headers = size > 0 ? { ...common, Range: `bytes=${size}-` } : common;
      const response = await request(url, { headers, signal, cache: "no-store" });
      // A server without range requests sends the whole file: skip the bytes that are already stored.
      let skip = response.status === 206 ? 0 : size;
      let isFirst = true;
      for await (const chunk of chunksOf(response)) {
        if (isFirst) rejectWebPage(url, response.headers, chunk);
        isFirst = false;
        const passed = Math.min(skip, chunk.length);
        skip -= passed;
        const bytes = chunk.subarray(passed, passed + entry.bytes - size);
        if (bytes.length === 0) continue;
        const written = access.write(bytes, { at: size });
        if (written !== bytes.length) throw new MgmError("quota", NO_SPACE);
        hash.update(bytes);
        size += bytes.length;
        advance(bytes.length);
        retries.reset();
      }
      if (size < entry.bytes) throw endsEarly(url, size, entry.bytes);
    } catch (error) {
      await retries.after(error);
    }
  }
}

function endsEarly(url: string, size: number, bytes: number): MgmError {
  return new MgmError("network", `${url}: the connection repeatedly closed after ${size} of ${bytes} bytes`);
}

function wrongDigest(url: string): MgmError {
  return new MgmError("checksum", `${url} is not the file that the manifest names: its SHA-256 differs (2 attempts)`);
}

/** Downloads all files as blobs, which the browser keeps in memory or in temporary files. */
async function withoutStorage(url: string, options: DownloadOptions): Promise<Map<string, Blob>> {
  const text = await fetchManifest(url, options.signal, options.headers);
  const manifest = parseManifest(text, url);
  options.accept(manifest);
  const entries = distinct(manifest);
  const total = entries.reduce((sum, { bytes }) => sum + bytes, 0);
  const found = new Map<string, Blob>();
  let loaded = 0;
  await inParallel(entries, options.signal, async (entry, signal) => {
    const address = new URL(entry.file, url).href;
    let verified: Blob | undefined;
    for (let attempt = 0; !verified && attempt < 2; attempt++) {
      const fetchBlob = async (isRetry: boolean) => {
        const response = await request(address, { headers: options.headers, signal, cache: isRetry ? "no-store" : "no-cache" });
        const blob = await response.blob();
        rejectWebPage(address, response.headers, new Uint8Array(await blob.slice(0, 1).arrayBuffer()));
        return blob;
      };
      const blob = await retry(address, signal, fetchBlob, LONG_PATIENCE);
      const hash = options.newHash();
      for (let at = 0; at < blob.size; at += CHECK_BYTES) {
        hash.update(new Uint8Array(await blob.slice(at, at + CHECK_BYTES).arrayBuffer()));
      }
      if (hash.finish() === entry.sha256) verified = blob;
    }
    if (!verified) throw wrongDigest(address);
    found.set(entry.sha256, verified);
    loaded += entry.bytes;
    options.onProgress(entry.part, loaded, total);
  });
  return named(manifest, text, found);
}

/** Runs a task for each item, {@link PARALLEL} at a time. The first failure aborts the others. */
async function inParallel<T>(
  items: T[],
  signal: AbortSignal,
  task: (item: T, signal: AbortSignal) => Promise<void>,
): Promise<void> {
  const failed = new AbortController();
  const either = anySignal([signal, failed.signal]);
  const queue = items.values();
  const results = await Promise.allSettled(
    Array.from({ length: PARALLEL }, async () => {
      for (const item of queue) {
        try {
          either.throwIfAborted();
          await task(item, either);
        } catch (error) {
          if (!failed.signal.aborted) failed.abort(error);
          throw error;
        }
      }
    }),
  );
  signal.throwIfAborted();
  if (results.some((result) => result.status === "rejected")) throw failed.signal.reason;
}
