// The page's side of the worker: starts it, sends calls, receives results.

import { cachedWorkerScript } from "./asset-cache.js";
import { assetUrls } from "./asset-urls.js";
import { fromWire, MgmError, type MgmErrorCode } from "./errors.js";
import { isWebPage, request, retry } from "./http.js";
import type { ProgressMessage, Reply, Request, ResultMessage, StartMessage } from "./protocol.js";
import type { Progress } from "./types.js";

/** Milliseconds after which the cached copy, if there is one, replaces a worker that has not started. */
const START_LIMIT_WITH_COPY = 5_000;
/** Milliseconds after which a worker that has not started counts as failed. */
const START_LIMIT = 60_000;

/** A request without its number. */
type Call = Request extends infer R ? (R extends { id: number } ? Omit<R, "id"> : never) : never;

export class WorkerClient {
  #worker: Worker | undefined;
  #isStarted = false;
  /** Requests sent before the worker started. They are sent again if the cached copy replaces it. */
  #pending: Request[] = [];
  #startTimer: ReturnType<typeof setTimeout> | undefined;
  readonly #handlers = new Map<number, (reply: ProgressMessage | ResultMessage) => void>();
  #lastId = 0;
  #ended: MgmError | undefined;
  #isPersistent = false;
  readonly #stop = new AbortController();
  /** Whether the worker's script has been fetched to find out why the worker did not start. */
  #isChecked = false;
  /** Whether that is under way. */
  #isChecking = false;

  constructor(private readonly onProgress?: (progress: Progress) => void) {
    try {
      const urls = assetUrls();
      this.#startTimer = setTimeout(() => void this.#startCopy(urls, TOO_SLOW), START_LIMIT_WITH_COPY);
      try {
        this.#run(startWorker(urls.workerUrl), { type: "start", ...urls, fromCache: false });
      } catch (error) {
        void this.#startCopy(urls, String(error));
      }
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
    this.#stop.abort();
    clearTimeout(this.#startTimer);
    this.#worker?.terminate();
    for (const [id, handler] of [...this.#handlers]) handler({ id, type: "error", error });
  }

  #post(request: Request): void {
    if (!this.#isStarted) this.#pending.push(request);
    this.#worker?.postMessage(request);
  }

  #run({ worker, url }: StartedWorker, message: StartMessage): void {
    this.#worker = worker;
    worker.onmessage = ({ data }: MessageEvent<Reply>) => {
      if (data.type !== "started") {
        this.#handlers.get(data.id)?.(data);
        return;
      }
      this.#isStarted = true;
      this.#pending = [];
      clearTimeout(this.#startTimer);
      if (url.startsWith("blob:")) URL.revokeObjectURL(url);
    };
    worker.onerror = (event) => {
      // It is an MgmError; the page need not report it too.
      event.preventDefault();
      const reason = event.message || "the script was not loaded";
      if (this.#isStarted) this.end("internal", `the worker failed: ${reason}`);
      else if (message.fromCache) this.#failToStart(message.workerUrl, reason);
      else void this.#startCopy(message, reason);
    };
    worker.postMessage(message);
    for (const request of this.#pending) worker.postMessage(request);
  }

  /** Replaces a worker that does not start with the cached copy of its script. */
  async #startCopy({ workerUrl, wasmUrl }: Omit<StartMessage, "type" | "fromCache">, reason: string): Promise<void> {
    clearTimeout(this.#startTimer);
    const script = await cachedWorkerScript(workerUrl);
    if (this.#isStarted || this.#ended) return;
    if (script === undefined) {
      await this.#startAgain({ workerUrl, wasmUrl }, reason);
      return;
    }
    this.#worker?.terminate();
    try {
      this.#run(startScript(script), { type: "start", workerUrl, wasmUrl, fromCache: true });
    } catch (error) {
      this.#failToStart(workerUrl, String(error));
    }
  }

  /** Browsers do not say why a worker does not start. Fetches its script, and starts it once more where that succeeds. */
  async #startAgain(urls: Pick<StartMessage, "workerUrl" | "wasmUrl">, reason: string): Promise<void> {
    const { workerUrl } = urls;
    // The first worker may both take too long and fail.
    if (this.#isChecking) return;
    if (!navigator.onLine || this.#isChecked) {
      this.#failToStart(workerUrl, reason);
      return;
    }
    this.#isChecked = this.#isChecking = true;
    this.#startTimer = setTimeout(() => this.#failToStart(workerUrl, TOO_SLOW), START_LIMIT);
    try {
      await checkScript(workerUrl, this.#stop.signal);
      if (this.#isStarted || this.#ended) return;
      this.#worker?.terminate();
      this.#isChecking = false;
      this.#run(startWorker(workerUrl), { type: "start", ...urls, fromCache: false });
    } catch (error) {
      if (this.#isStarted || this.#ended) return;
      // The script may be there all the same: `fetch` needs `connect-src`, and from another origin CORS.
      const isKnown = error instanceof MgmError && error.code === "http";
      if (isKnown) this.end("http", `the package's worker did not start: ${error.message}`);
      else if (reason !== TOO_SLOW) this.#failToStart(workerUrl, `${reason}; ${error instanceof MgmError ? error.message : String(error)}`);
    }
  }

  #failToStart(url: string, reason: string): void {
    if (navigator.onLine) {
      const hint = "does the content security policy allow it (worker-src), and is it the package's script?";
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

const TOO_SLOW = "it takes too long";

/** Fails if a server does not deliver a script. Repeats requests whose connection fails. */
async function checkScript(url: string, signal: AbortSignal): Promise<void> {
  const headers = await retry(url, signal, async () => {
    const response = await request(url, { signal });
    await response.arrayBuffer();
    return response.headers;
  });
  if (isWebPage(headers)) throw new MgmError("http", `${url}: the server sent a web page instead of the script`);
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
