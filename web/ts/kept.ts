// The package's own worker and wasm, kept on this device: a model that is here can then be started without a network.

import { MgmError } from "./errors.js";

const CACHE = "mgm-webgpu";
/** What a worker's name begins with that came from the copy; the address of the original follows. */
const KEPT = "mgm kept ";

const wasmKey = (script: string) => new URL("?wasm", script).href;

/** For pages: a worker from the copy of the script at an address, if there is one. */
export async function keptWorker(script: string): Promise<Worker | undefined> {
  try {
    const cache = await caches.open(CACHE);
    // Bundlers may know the worker by one name as such and by another as a file, both in one folder.
    const folder = new URL(".", script).href;
    const scripts = (await cache.keys()).map(({ url }) => url).filter((url) => new URL(".", url).href === folder && !url.endsWith("?wasm"));
    const key = scripts.find((url) => url === script) ?? scripts[0];
    const kept = key && (await cache.match(key));
    if (!kept) return undefined;
    const address = URL.createObjectURL(new Blob([await kept.text()], { type: "text/javascript" }));
    return new Worker(address, { type: "module", name: KEPT + key });
  } catch {
    // Without storage, or where a policy forbids such workers, there is none.
    return undefined;
  }
}

/** For workers: the wasm module; `locate` says where it is, which a worker that came from the copy cannot know. */
export async function wasmResponse(script: string, name: string, locate: () => URL): Promise<Response> {
  if (name.startsWith(KEPT)) return keptWasm(name.slice(KEPT.length));
  let response: Response;
  try {
    response = await fetch(locate());
  } catch (cause) {
    return keptWasm(script, cause);
  }
  if (!response.ok) throw new MgmError("http", `${response.url}: the server answers ${response.status}`);
  // Nothing waits for this, and a start without it is as good.
  void keep(script, response.clone()).catch(() => undefined);
  return response;
}

async function keptWasm(script: string, cause?: unknown): Promise<Response> {
  const kept = await caches.open(CACHE).then((cache) => cache.match(wasmKey(script)), () => undefined);
  if (kept) return kept;
  throw new MgmError(navigator.onLine ? "network" : "offline", "the package's wasm module could not be fetched", { cause });
}

/** Whether the server says that a response is what was kept before. */
function isSame({ headers }: Response, kept: Response | undefined): boolean {
  const marks = ["etag", "last-modified"].filter((name) => headers.has(name));
  return marks.length > 0 && [...marks, "content-length"].every((name) => headers.get(name) === kept?.headers.get(name));
}

async function keep(script: string, wasm: Response): Promise<void> {
  const cache = await caches.open(CACHE);
  const put = async (key: string, response: Response) => {
    if (!isSame(response, await cache.match(key))) await cache.put(key, response);
    else await response.body?.cancel();
  };
  const [source] = await Promise.all([fetch(script), put(wasmKey(script), wasm)]);
  if (!source.ok) return;
  await put(script, source);
  // Bundlers give each version a name of its own: those before are of no use.
  const folder = new URL(".", script).href;
  for (const { url } of await cache.keys()) {
    const old = new URL(".", url).href === folder && url !== script && url !== wasmKey(script);
    if (old) await cache.delete(url);
  }
}
