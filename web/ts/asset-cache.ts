// Copies of the package's worker and wasm module in the Cache API, so that a downloaded model starts offline.

import { MgmError } from "./errors.js";
import { isWebPage, request, retry, STALL_LIMIT_WITH_COPY } from "./http.js";
import type { StartMessage } from "./protocol.js";

const CACHE = "mgm-webgpu";
/** Milliseconds to wait for the cache: while another page writes to it, `match` waits. */
const PATIENCE = 10_000;

/** The cached copy of an asset, if there is one. */
async function cachedCopy(url: string): Promise<Response | undefined> {
  try {
    const match = caches.open(CACHE).then((cache) => cache.match(url));
    return await Promise.race([match, new Promise<undefined>((resolve) => setTimeout(resolve, PATIENCE, undefined))]);
  } catch {
    // Some private windows have no Cache API.
    return undefined;
  }
}

/** The cached copy of the worker's script. */
export async function cachedWorkerScript(url: string): Promise<string | undefined> {
  return (await cachedCopy(url))?.text();
}

/** Fetches the wasm module, or takes the cached copy if the server does not deliver it. For the worker. */
export async function wasmResponse({ workerUrl, wasmUrl, fromCache }: StartMessage): Promise<Response> {
  const copy = await cachedCopy(wasmUrl);
  if (copy && fromCache) return copy;
  try {
    const { signal } = new AbortController();
    const response = copy
      ? await request(wasmUrl, { signal }, STALL_LIMIT_WITH_COPY)
      : await retry(wasmUrl, signal, (isRetry) => request(wasmUrl, { signal, cache: isRetry ? "no-store" : "default" }));
    if (isWebPage(response.headers)) {
      throw new MgmError("http", `${wasmUrl}: the server sent a web page instead of the wasm module`);
    }
    // Nothing waits for the copies, and a failure to store them is harmless.
    void store(workerUrl, wasmUrl, response.clone()).catch(() => undefined);
    return response;
  } catch (cause) {
    if (copy) return copy;
    if (!(cause instanceof MgmError)) throw cause;
    throw new MgmError(cause.code, `the package's wasm module could not be fetched: ${cause.message}`, { cause });
  }
}

/** The cached copy of the wasm module, or the whole module once more: the connection may have broken while it was compiled as it arrived. */
export async function wasmBytes({ wasmUrl }: StartMessage): Promise<ArrayBuffer> {
  const copy = await cachedCopy(wasmUrl);
  if (copy) return copy.arrayBuffer();
  const { signal } = new AbortController();
  return retry(wasmUrl, signal, async () => (await request(wasmUrl, { signal, cache: "no-store" })).arrayBuffer());
}

/** Whether two responses have the same validators. */
function isSame({ headers }: Response, copy: Response | undefined): boolean {
  const validators = ["etag", "last-modified"].filter((name) => headers.has(name));
  return validators.length > 0 && [...validators, "content-length"].every((name) => headers.get(name) === copy?.headers.get(name));
}

async function store(workerUrl: string, wasmUrl: string, wasm: Response): Promise<void> {
  const cache = await caches.open(CACHE);
  const put = async (url: string, response: Response) => {
    if (isSame(response, await cache.match(url))) {
      await response.body?.cancel();
      return;
    }
    // The whole body first: other pages' `match` waits until `put` ends, and a connection may stall.
    const body = await response.arrayBuffer();
    await cache.put(url, new Response(body, response));
  };
  const [worker] = await Promise.all([fetch(workerUrl), put(wasmUrl, wasm)]);
  if (!worker.ok) return;
  await put(workerUrl, worker);
  // Bundlers put a hash into file names: delete the copies of earlier versions.
  const folder = (url: string) => new URL(".", url).href;
  for (const { url } of await cache.keys()) {
    const isOld = url !== workerUrl && url !== wasmUrl && [workerUrl, wasmUrl].some((current) => folder(url) === folder(current));
    if (isOld) await cache.delete(url);
  }
}
