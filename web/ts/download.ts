// Bundles from a server to this device: in parallel, with ranges, checked, resumed, shared between tabs. Worker only.

import { MgmError } from "./errors.js";
import { chunksOf, explained, fetchManifest, FIRST_WAIT, insist, passes, request, TRIES, wait } from "./fetching.js";
import { type BundleFile, isPainter, MANIFEST, type Manifest, parseManifest } from "./manifest.js";
import { bundleFolder, getFile, putText, remember } from "./storage.js";

/** Files that come at the same time. */
const PARALLEL = 4;
/** Bytes of a part that are read at once when it is checked again. */
const CHECK_BYTES = 4 << 20;

const NO_ROOM = "there is not enough room for the model on this device: cache.list() and cache.delete() make some";

/** A running SHA-256, of the wasm module. */
export interface Hash {
  update(bytes: Uint8Array): void;
  finish(): string;
  free(): void;
}

export interface DownloadOptions {
  cache: boolean;
  signal: AbortSignal;
  /** Throws if what the manifest names is not wanted. */
  accept: (manifest: Manifest) => void;
  newHash: () => Hash;
  onProgress: (part: string, loaded: number, total: number) => void;
}

/** Gets the bundle in the folder at `url`: its files by name. What is on this device already is not asked for again. */
export async function getBundle(url: string, options: DownloadOptions): Promise<Map<string, Blob>> {
  if (!options.cache) return withoutStorage(url, options);
  const folder = await bundleFolder(url);
  // Another tab may be at it: then this one waits, and finds the files there.
  try {
    return await navigator.locks.request(`mgm:${url}`, { signal: options.signal }, () => withStorage(url, folder, options));
  } catch (error) {
    const full = error instanceof DOMException && error.name === "QuotaExceededError";
    throw full ? new MgmError("quota", NO_ROOM, { cause: error }) : error;
  }
}

async function withStorage(
  url: string,
  folder: FileSystemDirectoryHandle,
  options: DownloadOptions,
): Promise<Map<string, Blob>> {
  const { text, manifest, fresh } = await manifestOf(url, folder, options.signal);
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
  if (missing.length > 0 || fresh) {
    await remember(folder, { url, name: manifest.name, paints: isPainter(manifest), files: entries });
  }
  if (fresh) await putText(folder, MANIFEST, text);
  await checkRoom(folder, missing);
  // Else the browser may clear the model away when it wants the room. It decides by itself whether to ask the user.
  if (missing.length > 0) await navigator.storage.persist?.().catch(() => false);
  options.onProgress(missing[0]?.part ?? "language", loaded, total);
  const advance = (entry: BundleFile, bytes: number) => {
    loaded += bytes;
    options.onProgress(entry.part, loaded, total);
  };
  await inParallel(missing, options.signal, async (entry, signal) => {
    await download(new URL(entry.file, url).href, folder, entry, { ...options, signal }, (bytes) => advance(entry, bytes));
    const file = await getFile(folder, entry.sha256);
    if (!file) throw new MgmError("storage", `${entry.file} is gone from this device`);
    found.set(entry.sha256, file);
  });
  return named(manifest, text, found);
}

/** The files of different contents, which come once: a bundle may have the same vocabulary twice. */
function distinct({ files, shards }: Manifest): BundleFile[] {
  return [...new Map([...files, ...shards].map((entry) => [entry.sha256, entry])).values()];
}

/** All files by their names. */
function named({ files, shards }: Manifest, manifest: string, found: Map<string, Blob>): Map<string, Blob> {
  const blobs = new Map<string, Blob>([[MANIFEST, new Blob([manifest])]]);
  for (const { file, sha256 } of [...files, ...shards]) {
    const blob = found.get(sha256);
    if (blob) blobs.set(file, blob);
  }
  return blobs;
}

/** The manifest from the server, or the one that is here if the server cannot be reached. */
async function manifestOf(url: string, folder: FileSystemDirectoryHandle, signal: AbortSignal) {
  const kept = await getFile(folder, MANIFEST);
  const keptText = await kept?.text();
  try {
    // With a copy here there is no need to insist.
    const text = await fetchManifest(url, keptText === undefined ? TRIES : 1, signal);
    return { text, manifest: parseManifest(text, url), fresh: text !== keptText };
  } catch (error) {
    signal.throwIfAborted();
    const reachable = error instanceof MgmError && error.code === "config";
    if (keptText === undefined || reachable) throw await explained(url, error);
    return { text: keptText, manifest: parseManifest(keptText, url), fresh: false };
  }
}

/** Says before the download what would otherwise show itself in its middle. */
async function checkRoom(folder: FileSystemDirectoryHandle, missing: BundleFile[]): Promise<void> {
  let needed = 0;
  for (const entry of missing) {
    needed += entry.bytes - ((await getFile(folder, `${entry.sha256}.part`))?.size ?? 0);
  }
  const { quota, usage } = await navigator.storage.estimate();
  if (quota !== undefined && usage !== undefined && needed > quota - usage) {
    const megabytes = (bytes: number) => `${Math.ceil(Math.max(bytes, 0) / 1e6)} MB`;
    throw new MgmError("quota", `${NO_ROOM} (${megabytes(needed)} are needed, ${megabytes(quota - usage)} are free)`);
  }
}

/** Brings one file here, whole and checked. */
async function download(
  url: string,
  folder: FileSystemDirectoryHandle,
  entry: BundleFile,
  options: DownloadOptions,
  advance: (bytes: number) => void,
): Promise<void> {
  const handle = await folder.getFileHandle(`${entry.sha256}.part`, { create: true });
  const access = await handle.createSyncAccessHandle();
  let sound = false;
  try {
    // Once more from the start, should a part that was here already be damaged.
    for (let attempt = 0; !sound && attempt < 2; attempt++) {
      const hash = options.newHash();
      try {
        await fill(url, access, entry, hash, options.signal, advance);
      } catch (error) {
        hash.free();
        throw error;
      }
      sound = hash.finish() === entry.sha256;
      if (!sound) {
        access.truncate(0);
        advance(-entry.bytes);
      }
    }
    access.flush();
  } finally {
    access.close();
  }
  if (!sound) {
    throw new MgmError("checksum", `${url} is not the file that the manifest names: its SHA-256 differs, twice`);
  }
  await handle.move(entry.sha256);
}

/** Fills a file up to its length, going on where it ends, through as many connections as it takes. */
async function fill(
  url: string,
  access: FileSystemSyncAccessHandle,
  entry: BundleFile,
  hash: Hash,
  signal: AbortSignal,
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
  let failures = 0;
  while (size < entry.bytes) {
    try {
      const headers: HeadersInit = size > 0 ? { Range: `bytes=${size}-` } : {};
      const response = await request(url, { headers, signal, cache: "no-store" });
      // A server that knows no ranges starts from the beginning: what is here already is passed over.
      let skip = response.status === 206 ? 0 : size;
      for await (const chunk of chunksOf(response)) {
        const passed = Math.min(skip, chunk.length);
        skip -= passed;
        const bytes = chunk.subarray(passed, passed + entry.bytes - size);
        if (bytes.length === 0) continue;
        const written = access.write(bytes, { at: size });
        if (written !== bytes.length) throw new MgmError("quota", NO_ROOM);
        hash.update(bytes);
        size += bytes.length;
        advance(bytes.length);
        failures = 0;
      }
      if (size < entry.bytes && ++failures >= TRIES) throw endsEarly(url, size, entry.bytes);
    } catch (error) {
      signal.throwIfAborted();
      if (!passes(error) || ++failures >= TRIES) throw await explained(url, error);
      await wait(FIRST_WAIT * 2 ** (failures - 1), signal);
    }
  }
}

function endsEarly(url: string, size: number, bytes: number): MgmError {
  return new MgmError("network", `${url} ends after ${size} of ${bytes} bytes, again and again`);
}

/** Files that stay in the browser's memory, or wherever it keeps blobs. */
async function withoutStorage(url: string, options: DownloadOptions): Promise<Map<string, Blob>> {
  const text = await fetchManifest(url, TRIES, options.signal);
  const manifest = parseManifest(text, url);
  options.accept(manifest);
  const entries = distinct(manifest);
  const total = entries.reduce((sum, { bytes }) => sum + bytes, 0);
  const found = new Map<string, Blob>();
  let loaded = 0;
  await inParallel(entries, options.signal, async (entry, signal) => {
    const address = new URL(entry.file, url).href;
    let sound: Blob | undefined;
    for (let attempt = 0; !sound && attempt < 2; attempt++) {
      const blob = await insist(address, TRIES, signal, async () => (await request(address, { signal, cache: "no-cache" })).blob());
      const hash = options.newHash();
      for (let at = 0; at < blob.size; at += CHECK_BYTES) {
        hash.update(new Uint8Array(await blob.slice(at, at + CHECK_BYTES).arrayBuffer()));
      }
      if (hash.finish() === entry.sha256) sound = blob;
    }
    if (!sound) {
      throw new MgmError("checksum", `${address} is not the file that the manifest names: its SHA-256 differs, twice`);
    }
    found.set(entry.sha256, sound);
    loaded += entry.bytes;
    options.onProgress(entry.part, loaded, total);
  });
  return named(manifest, text, found);
}

/** Runs a task for each item, a few at a time. The first failure stops the others. */
async function inParallel<T>(
  items: T[],
  signal: AbortSignal,
  task: (item: T, signal: AbortSignal) => Promise<void>,
): Promise<void> {
  const failed = new AbortController();
  const either = AbortSignal.any([signal, failed.signal]);
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
