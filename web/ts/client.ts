// The page's side of the worker: starts it, sends calls, receives results.

import { cachedWorkerScript } from "./asset-cache.js";
import { assetUrls, type AssetUrls } from "./asset-urls.js";
import { fromWire, MgmError, type MgmErrorCode } from "./errors.js";
import { isWebPage, request, retry } from "./http.js";
import type { ProgressMessage, Reply, Request, ResultMessage, StartMessage } from "./protocol.js";
import type { Progress } from "./types.js";

/** Milliseconds after which the cached copy, if there is one, replaces a worker that has not started. */
const START_LIMIT_WITH_COPY = 5_000;
/** Milliseconds after which a worker that has not started, nor its copy, counts as failed. */
const START_LIMIT = 60_000;

/** A request without its number. */
type Call = Request extends infer R ? (R extends { id: number } ? Omit<R, "id"> : never) : never;

export class WorkerClient {
  #worker: Worker | undefined;
  #isStarted = false;
  /** Requests sent before the worker started. They are sent again if the cached copy replaces it. */
  #pending: Request[] = [];
  readonly #handlers = new Map<number, (reply: ProgressMessage | ResultMessage) => void>();
  #lastId = 0;
  #ended: MgmError | undefined;
  #isPersistent = false;
  #settle = () => {};
  /** Resolves when the worker has started or failed for good. */
  readonly #settled = new Promise<void>((resolve) => (this.#settle = resolve));
  readonly #stop = new AbortController();

  constructor(private readonly onProgress?: (progress: Progress) => void) {
    try {
      void this.#start(assetUrls());
    } catch (error) {
      this.#fail(error as MgmError);
    }
  }

  /** Sends a call to the worker and waits for its result. */
  call(call: Call, signal?: AbortSignal, onMessage?: (message: ProgressMessage) => void): Promise<ResultMessage> {
    return new Promise((resolve, reject) => {
      if (this.#ended) {
        reject(this.#ended);
        return;
      }
      const id = ++this.#lastId;
      const settle = () => {
        this.#handlers.delete(id);
        signal?.removeEventListener("abort", abort);
      };
      const abort = () => {
        this.#post({ id, type: "abort" });
        // A started worker replies itself: immediately for a queued call, between two steps for a running one.
        if (this.#isStarted) return;
        settle();
        reject(signal?.reason as Error);
      };
      this.#handlers.set(id, (reply) => {
        switch (reply.type) {
          case "error":
            settle();
            reject(signal?.aborted ? (signal.reason as Error) : fromWire(reply.error));
            break;
          case "progress":
            this.onProgress?.(reply.progress);
            break;
          case "storing":
            this.#persist();
            break;
          case "text":
          case "first-token":
          case "step":
            onMessage?.(reply);
            break;
          default:
            settle();
            resolve(reply);
        }
      });
      signal?.addEventListener("abort", abort, { once: true });
      this.#post({ ...call, id } as Request);
      if (signal?.aborted) abort();
    });
  }

  /** Terminates the worker. Calls in progress and later calls fail. */
  end(code: MgmErrorCode, message: string): void {
    this.#fail(new MgmError(code, message));
  }

  #fail(error: MgmError): void {
    if (this.#ended) return;
    this.#ended = error;
    this.#settle();
    this.#stop.abort();
    this.#worker?.terminate();
    for (const [id, handler] of [...this.#handlers]) handler({ id, type: "error", error });
  }

  #post(request: Request): void {
    if (!this.#isStarted) this.#pending.push(request);
    this.#worker?.postMessage(request);
  }

  /**
   * Starts the worker. If it fails or takes too long, its cached copy replaces it. Without a copy, `fetch` downloads
   * the script again: browsers report neither why a worker does not start nor that its connection has stalled.
   */
  async #start(urls: AssetUrls): Promise<void> {
    const { workerUrl } = urls;
    const run = (worker: () => StartedWorker, fromCache = false) => this.#run(worker, { type: "start", ...urls, fromCache });
    const failure = run(() => startWorker(workerUrl));
    let reason = await this.#unlessStarted(failure, START_LIMIT_WITH_COPY);
    if (reason === undefined) return;
    const deadline = performance.now() + START_LIMIT;
    const timeLeft = () => Math.max(0, deadline - performance.now());
    const copy = await cachedWorkerScript(workerUrl);
    if (copy !== undefined) {
      reason = await this.#unlessStarted(run(() => startScript(copy), true), timeLeft());
    } else if (navigator.onLine) {
      const fetched = await this.#unlessStarted(fetchScript(workerUrl, this.#stop.signal).catch((error: unknown) => error), timeLeft());
      if (typeof fetched === "string") {
        // A content security policy may allow one and not the other.
        for (const start of [() => startScript(fetched), () => startWorker(workerUrl)]) {
          if (reason !== undefined) reason = await this.#unlessStarted(run(start), timeLeft());
        }
      } else if (fetched instanceof MgmError && fetched.code === "http") {
        this.end("http", `the package's worker did not start: ${fetched.message}`);
      } else {
        // The worker may still start: `fetch` needs `connect-src`, and from another origin CORS.
        reason = await this.#unlessStarted(failure, timeLeft());
        if (reason !== undefined && fetched !== TOO_SLOW) reason += `; ${fetched instanceof MgmError ? fetched.message : String(fetched)}`;
      }
    }
    if (reason !== undefined) this.#failToStart(workerUrl, reason);
  }

  /** Waits for a promise for at most `limit` milliseconds, then gives `TOO_SLOW`; undefined as soon as the worker has started or failed for good. */
  #unlessStarted<T>(promise: Promise<T>, limit: number): Promise<T | typeof TOO_SLOW | undefined> {
    return Promise.race([this.#settled.then(() => undefined), promise, new Promise<typeof TOO_SLOW>((resolve) => setTimeout(resolve, limit, TOO_SLOW))]);
  }

  /** Starts a worker in place of the present one. Gives the reason if it does not start. */
  #run(start: () => StartedWorker, message: StartMessage): Promise<string> {
    this.#worker?.terminate();
    return new Promise((resolve) => {
      try {
        const { worker, url } = start();
        this.#worker = worker;
        worker.onmessage = ({ data }: MessageEvent<Reply>) => {
          if (data.type !== "started") {
            this.#handlers.get(data.id)?.(data);
            return;
          }
          this.#isStarted = true;
          this.#settle();
          this.#pending = [];
          if (url.startsWith("blob:")) URL.revokeObjectURL(url);
        };
        worker.onerror = (event) => {
          // It is an MgmError; the page need not report it too.
          event.preventDefault();
          const reason = event.message || "the script was not loaded";
          if (this.#isStarted) this.end("internal", `the worker failed: ${reason}`);
          else resolve(reason);
        };
        worker.postMessage(message);
        for (const request of this.#pending) worker.postMessage(request);
      } catch (error) {
        resolve(String(error));
      }
    });
  }

  #failToStart(url: string, reason: string): void {
    if (navigator.onLine) {
      // Firefox does not say that Trusted Types are the reason.
      const policies = `worker-src, and with Trusted Types the policy ${POLICY}`;
      const hint = `check that the content security policy allows it (${policies}), and that it is the package's script`;
      this.end("network", `the package's worker ${url} did not start: ${reason} (${hint})`);
    } else {
      this.end("offline", `this device is offline, and there is no copy of the package's worker ${url}`);
    }
  }

  /** Asks the browser once not to evict the model that it downloads. Workers cannot do this. Some browsers ask the user. */
  #persist(): void {
    if (this.#isPersistent) return;
    this.#isPersistent = true;
    void navigator.storage?.persist?.().catch(() => false);
  }
}

const TOO_SLOW = "no response within the time limit";

/** Fetches a script. Fails if the server sends something else. Repeats requests whose connection fails. */
async function fetchScript(url: string, signal: AbortSignal): Promise<string> {
  return retry(url, signal, async () => {
    const response = await request(url, { signal, cache: "no-store" });
    const script = await response.text();
    if (isWebPage(response.headers)) throw new MgmError("http", `${url}: the server sent a web page instead of the script`);
    return script;
  });
}

interface StartedWorker {
  worker: Worker;
  /** The address that it was started from. */
  url: string;
}

/** Starts the worker's script, from this origin or another. */
function startWorker(scriptUrl: string): StartedWorker {
  if (new URL(scriptUrl).origin === globalThis.origin) {
    return { worker: new Worker(trustedScriptUrl(scriptUrl), { name: "mgm" }), url: scriptUrl };
  }
  // A worker must have the page's origin, but may import scripts of others. Under Trusted Types it needs a policy for that too.
  return startScript(`{
    const url = ${JSON.stringify(scriptUrl)};
    importScripts(self.trustedTypes ? trustedTypes.createPolicy(${JSON.stringify(POLICY)}, { createScriptURL: (url) => url }).createScriptURL(url) : url);
  }`);
}

function startScript(script: string): StartedWorker {
  const url = URL.createObjectURL(new Blob([script], { type: "text/javascript" }));
  return { worker: new Worker(trustedScriptUrl(url), { name: "mgm" }), url };
}

/** The name of the package's Trusted Types policy. */
const POLICY = "mgm-webgpu";

interface TrustedTypes {
  createPolicy(name: string, rules: { createScriptURL: (url: string) => string }): { createScriptURL(url: string): string };
}

let policy: ReturnType<TrustedTypes["createPolicy"]> | undefined;

/** A URL that `new Worker` accepts on pages with `require-trusted-types-for 'script'`. */
function trustedScriptUrl(url: string): string {
  const { trustedTypes } = globalThis as { trustedTypes?: TrustedTypes };
  if (!trustedTypes) return url;
  try {
    policy ??= trustedTypes.createPolicy(POLICY, { createScriptURL: (url) => url });
  } catch {
    // The page's policy list does not name ours. `new Worker` fails if the page requires Trusted Types.
    return url;
  }
  return policy.createScriptURL(url);
}
