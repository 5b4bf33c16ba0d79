// Requests with retries, detection of stalled connections, and errors that say what went wrong. No library: the package has no
// runtime dependencies, and wrappers of `fetch` repeat requests, but do not notice bodies that stall.

import { MgmError } from "./errors.js";
import { MANIFEST } from "./manifest.js";

/** Number of consecutive failures, without a byte in between, after which a download fails. */
export const MAX_TRIES = 6;
/** Milliseconds to wait after the first failure. The wait doubles with each failure. */
const FIRST_WAIT = 250;
/** Maximum wait that a server can request (`Retry-After`), in milliseconds. */
const MAX_WAIT = 60_000;
/** Milliseconds without data after which a connection counts as broken. */
const STALL_LIMIT = 20_000;
/** The same if a cached copy can replace the response. */
export const STALL_LIMIT_WITH_COPY = 5_000;
/** Error codes of transient failures. */
const TRANSIENT = new Set(["network", "offline"]);

/** The server asks to retry later: status 429 or 5xx. */
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
export function fetchManifest(
  url: string,
  tries: number,
  signal: AbortSignal,
  { stallLimit = STALL_LIMIT, headers = {} }: { stallLimit?: number; headers?: Record<string, string> } = {},
): Promise<string> {
  const address = new URL(MANIFEST, url).href;
  return retry(address, tries, signal, async () => (await request(address, { headers, cache: "no-cache", signal }, stallLimit)).text());
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
  if (status < 500 && status !== 429) return new StatusError(message, status);
  return new BusyError(message, Math.min(MAX_WAIT, retryAfter(headers.get("retry-after") ?? "")));
}

/** `Retry-After` in milliseconds: seconds or a date. */
function retryAfter(header: string): number {
  const milliseconds = /^\d+$/.test(header) ? Number(header) * 1000 : Date.parse(header) - Date.now();
  return milliseconds > 0 ? milliseconds : 0;
}

/** Repeats a task while it fails with transient errors. */
export async function retry<T>(url: string, tries: number, signal: AbortSignal, task: () => Promise<T>): Promise<T> {
  for (let failures = 1; ; failures++) {
    try {
      return await task();
    } catch (error) {
      signal.throwIfAborted();
      if (!isTransient(error) || failures >= tries) throw await explain(url, error);
      await backOff(failures, error, signal);
    }
  }
}

/** Waits before the next try. */
export function backOff(failures: number, error: unknown, signal: AbortSignal): Promise<void> {
  const wanted = error instanceof BusyError ? error.retryAfter : 0;
  return wait(Math.max(wanted, FIRST_WAIT * 2 ** (failures - 1)), signal);
}

/** Whether a retry may succeed. */
export function isTransient(error: unknown): boolean {
  return error instanceof TypeError || (error instanceof MgmError && TRANSIENT.has(error.code));
}

/** Finds out why a connection failed. Returns other errors unchanged. */
export async function explain(url: string, error: unknown): Promise<unknown> {
  if (!(error instanceof TypeError)) return error;
  if (!navigator.onLine) return new MgmError("offline", `${url}: this device is offline`, { cause: error });
  if (new URL(url).origin !== globalThis.origin) {
    // `fetch` hides the reason. If a request without CORS succeeds, CORS is the reason.
    const reachable = await fetch(url, { mode: "no-cors", method: "HEAD", signal: AbortSignal.timeout(STALL_LIMIT_WITH_COPY) }).then(() => true, () => false);
    if (reachable) {
      const message = `${url}: the server does not allow pages of ${globalThis.origin} to read it (CORS)`;
      return new MgmError("cors", message, { cause: error });
    }
  }
  return new MgmError("network", `${url}: the connection failed`, { cause: error });
}

/** Fails if a server sends a web page instead of a file: single-page hosts and captive portals do that with status 200. */
export function rejectWebPage(url: string, headers: Headers, firstBytes: Uint8Array): void {
  if (headers.get("content-type")?.startsWith("text/html") && firstBytes[0] === "<".charCodeAt(0)) {
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

function wait(milliseconds: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(signal.reason as Error);
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", stop);
      resolve();
    }, milliseconds);
    signal.addEventListener("abort", stop, { once: true });
  });
}
