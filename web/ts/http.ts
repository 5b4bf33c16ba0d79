// Requests with retries, detection of stalled connections, and errors that say what went wrong. No library: the package has no
// runtime dependencies, and wrappers of `fetch` repeat requests, but do not notice bodies that stall.

import { MgmError } from "./errors.js";
import { MANIFEST } from "./manifest.js";

/** Number of consecutive failures, without a byte in between, after which a request fails: after 8 s if connections fail at once. */
const MAX_TRIES = 6;
/**
 * Milliseconds that a download which the server has begun to serve waits between consecutive failures before it fails, and any request if the
 * server says that it is busy. A device that wakes up needs seconds to reconnect; dead zones last longer.
 */
export const LONG_PATIENCE = 60_000;
/** Milliseconds to wait after the first failure. The wait doubles with each failure. */
const FIRST_WAIT = 250;
/** Maximum wait between two tries, in milliseconds. */
const MAX_WAIT = 8_000;
/** Maximum wait that a server can request (`Retry-After`), in milliseconds. */
const MAX_REQUESTED_WAIT = 60_000;
/** Milliseconds without data after which a connection counts as broken. */
const STALL_LIMIT = 20_000;
/** The same if a cached copy can replace the response. */
export const STALL_LIMIT_WITH_COPY = 5_000;
/** Statuses of servers that are busy: too many requests, bad gateway, service unavailable, gateway timeout. */
const BUSY = [429, 502, 503, 504];
/** Error codes of transient failures. */
const TRANSIENT = new Set(["network", "offline"]);

/** The server asks to retry later. */
class BusyError extends MgmError {
  constructor(
    message: string,
    /** Milliseconds. */
    readonly retryAfter: number,
  ) {
    super("network", message);
  }
}

/** A response with a status that no retry changes. */
export class StatusError extends MgmError {
  constructor(
    message: string,
    readonly status: number,
  ) {
    super("http", message);
  }
}

/** A signal that aborts with the first of several. (`AbortSignal.any` needs Chrome 116.) */
export function anySignal(signals: AbortSignal[]): AbortSignal {
  if ("any" in AbortSignal) return AbortSignal.any(signals);
  const controller = new AbortController();
  for (const signal of signals) {
    if (signal.aborted) controller.abort(signal.reason);
    else signal.addEventListener("abort", () => controller.abort(signal.reason), { once: true, signal: controller.signal });
  }
  return controller.signal;
}

/** Fetches the manifest of the bundle at `url`. */
export const fetchManifest = (url: string, signal: AbortSignal, headers?: Record<string, string>): Promise<string> =>
  retry(new URL(MANIFEST, url).href, signal, (isRetry) => fetchManifestOnce(url, signal, { headers, isRetry }));

/** The same without retries. */
export async function fetchManifestOnce(
  url: string,
  signal: AbortSignal,
  { stallLimit, headers = {}, isRetry = false }: { stallLimit?: number; headers?: Record<string, string> | undefined; isRetry?: boolean } = {},
): Promise<string> {
  return (await request(new URL(MANIFEST, url).href, { headers, cache: isRetry ? "no-store" : "no-cache", signal }, stallLimit)).text();
}

/** Sends a request. Returns a successful response, whose body fails if no data arrives for `stallLimit` milliseconds. */
export async function request(url: string, init: RequestInit & { signal: AbortSignal }, stallLimit = STALL_LIMIT): Promise<Response> {
  const stalled = new AbortController();
  let timer: ReturnType<typeof setTimeout>;
  const watch = () => {
    clearTimeout(timer);
    timer = setTimeout(() => stalled.abort(new MgmError("network", `${url}: no data for ${stallLimit / 1000} s`)), stallLimit);
  };
  watch();
  const unwatch = () => clearTimeout(timer);
  let response: Response;
  try {
    response = await fetch(url, { ...init, signal: anySignal([init.signal, stalled.signal]) });
  } catch (error) {
    unwatch();
    init.signal.throwIfAborted();
    throw await explain(url, error);
  }
  if (!response.ok) {
    unwatch();
    await response.body?.cancel();
    throw statusError(url, response);
  }
  if (!response.body) {
    unwatch();
    return response;
  }
  const watched = response.body.pipeThrough(
    new TransformStream<Uint8Array<ArrayBuffer>, Uint8Array<ArrayBuffer>>({
      transform(chunk, controller) {
        watch();
        controller.enqueue(chunk);
      },
      flush: unwatch,
    }),
  );
  // A response that a program makes has no address.
  return Object.defineProperty(new Response(watched, response), "url", { value: response.url });
}

function statusError(url: string, { status, statusText, headers }: Response): MgmError {
  const message = `${url}: the server responded ${status} ${statusText}`.trimEnd();
  if (status < 500 && !BUSY.includes(status)) return new StatusError(message, status);
  if (!BUSY.includes(status)) return new MgmError("network", message);
  return new BusyError(message, Math.min(MAX_REQUESTED_WAIT, retryAfter(headers.get("retry-after") ?? "")));
}

/** `Retry-After` in milliseconds: seconds or a date. */
function retryAfter(header: string): number {
  const milliseconds = /^\d+$/.test(header) ? Number(header) * 1000 : Date.parse(header) - Date.now();
  return milliseconds > 0 ? milliseconds : 0;
}

/**
 * Repeats a task while it fails with transient errors. Retries bypass the browser's cache: in the cache, a request
 * waits up to 20 s (Chrome) for another request of the same URL, such as one whose connection has stalled.
 */
export async function retry<T>(url: string, signal: AbortSignal, task: (isRetry: boolean) => Promise<T>, patience?: number): Promise<T> {
  const retries = new Retries(url, signal, patience);
  for (let isRetry = false; ; isRetry = true) {
    try {
      return await task(isRetry);
    } catch (error) {
      await retries.after(error);
    }
  }
}

/** Consecutive failures of a download. */
export class Retries {
  #failures = 0;
  /** Milliseconds between them. Not the clock: it also runs while the device sleeps. */
  #waited = 0;

  constructor(
    private readonly url: string,
    private readonly signal: AbortSignal,
    private readonly patience = 0,
  ) {}

  /** Starts to count again. */
  reset(): void {
    this.#failures = 0;
    this.#waited = 0;
  }

  /** Waits before the next try, or throws if another one is pointless. */
  async after(error: unknown): Promise<void> {
    this.signal.throwIfAborted();
    const [patience, requested] = error instanceof BusyError ? [LONG_PATIENCE, error.retryAfter] : [this.patience, 0];
    const isLast = ++this.#failures >= MAX_TRIES && this.#waited >= patience;
    if (isLast || !isTransient(error)) throw await explain(this.url, error);
    const wait = Math.max(requested, Math.min(MAX_WAIT, FIRST_WAIT * 2 ** (this.#failures - 1)));
    await sleep(wait, this.signal);
    this.#waited += wait;
  }
}

/** Whether a retry may succeed. */
export function isTransient(error: unknown): boolean {
  return error instanceof TypeError || (error instanceof MgmError && TRANSIENT.has(error.code));
}

/** Finds out why a connection failed. Returns other errors unchanged. */
export async function explain(url: string, error: unknown): Promise<unknown> {
  if (!(error instanceof TypeError)) return error;
  // Node.js has no `navigator`, or one without `onLine`.
  if (globalThis.navigator?.onLine === false) return new MgmError("offline", `${url}: this device is offline`, { cause: error });
  if (globalThis.origin !== undefined && new URL(url).origin !== globalThis.origin) {
    // `fetch` hides the reason. If a request without CORS succeeds, CORS is the reason.
    const reachable = await fetch(url, { mode: "no-cors", method: "HEAD", signal: AbortSignal.timeout(STALL_LIMIT_WITH_COPY) }).then(() => true, () => false);
    if (reachable) {
      const message = `${url}: the server does not allow pages of ${globalThis.origin} to read it (CORS)`;
      return new MgmError("cors", message, { cause: error });
    }
  }
  return new MgmError("network", `${url}: the connection failed`, { cause: error });
}

/** Whether a response claims to be a web page. */
export const isWebPage = (headers: Headers): boolean => headers.get("content-type")?.startsWith("text/html") ?? false;

/** Fails if a server sends a web page instead of a file: single-page hosts and captive portals do that with status 200. */
export function rejectWebPage(url: string, headers: Headers, firstBytes: Uint8Array): void {
  if (isWebPage(headers) && firstBytes[0] === "<".charCodeAt(0)) {
    throw new MgmError("http", `${url}: the server sent a web page instead of the file`);
  }
}

/** The chunks of a response's body. */
export async function* chunksOf(response: Response): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  const reader = response.body?.getReader();
  if (!reader) return;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}

/** Waits. Stops early if the device is online again. */
function sleep(milliseconds: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const end = () => {
      clearTimeout(timer);
      globalThis.removeEventListener?.("online", end);
      signal.removeEventListener("abort", end);
      if (signal.aborted) reject(signal.reason as Error);
      else resolve();
    };
    const timer = setTimeout(end, milliseconds);
    globalThis.addEventListener?.("online", end);
    signal.addEventListener("abort", end);
  });
}
