// What goes wrong on the way from a server: tried again, and explained.

import { MgmError } from "./errors.js";
import { MANIFEST } from "./manifest.js";

/** Failures in a row, without a byte in between, after which a file is given up. */
export const TRIES = 5;
/** The first wait between tries, in milliseconds; it doubles. */
export const FIRST_WAIT = 250;
/** What may be better a moment later. */
const PASSING = new Set(["network", "offline"]);

/** The manifest of the bundle at `url`. */
export function fetchManifest(url: string, tries: number, signal: AbortSignal): Promise<string> {
  const address = new URL(MANIFEST, url).href;
  return insist(address, tries, signal, async () => (await request(address, { cache: "no-cache", signal })).text());
}

/** A response that is one of success. */
export async function request(url: string, init: RequestInit): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(url, init);
  } catch (error) {
    init.signal?.throwIfAborted();
    throw await whyNot(url, error);
  }
  if (response.ok) return response;
  await response.body?.cancel();
  const passing = response.status >= 500 || response.status === 429;
  throw new MgmError(passing ? "network" : "http", `${url}: the server answers ${response.status} ${response.statusText}`);
}

/** Tries something again while it fails in ways that pass. */
export async function insist<T>(url: string, tries: number, signal: AbortSignal, task: () => Promise<T>): Promise<T> {
  for (let failures = 1; ; failures++) {
    try {
      return await task();
    } catch (error) {
      signal.throwIfAborted();
      if (!passes(error) || failures >= tries) throw await explained(url, error);
      await wait(FIRST_WAIT * 2 ** (failures - 1), signal);
    }
  }
}

/** Whether what failed may succeed a moment later. */
export function passes(error: unknown): boolean {
  return error instanceof TypeError || (error instanceof MgmError && PASSING.has(error.code));
}

/** A connection that broke, by its reason; any other error as it is. */
export async function explained(url: string, error: unknown): Promise<unknown> {
  return error instanceof TypeError ? whyNot(url, error) : error;
}

/** Browsers do not tell why a request failed; one that asks for less does. */
async function whyNot(url: string, cause: unknown): Promise<MgmError> {
  if (!navigator.onLine) return new MgmError("offline", `${url}: this device is offline`, { cause });
  if (new URL(url).origin !== globalThis.location.origin) {
    const reachable = await fetch(url, { mode: "no-cors", method: "HEAD" }).then(() => true, () => false);
    if (reachable) {
      const message = `${url}: the server does not let pages of ${globalThis.location.origin} read it (CORS)`;
      return new MgmError("cors", message, { cause });
    }
  }
  return new MgmError("network", `${url}: the connection failed`, { cause });
}

/** The bytes of a response as they come. */
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

/** A pause that can be cut short. */
export function wait(milliseconds: number, signal: AbortSignal): Promise<void> {
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
