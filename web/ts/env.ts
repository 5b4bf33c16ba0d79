import { MgmError } from "./errors.js";

/** Where the package finds its files and models: see {@link env}. */
export interface Environment {
  /** The host of `"hf:owner/name"` sources. Default: `https://huggingface.co`. */
  hubUrl: string;
  /** Address of `worker.js`. Default: next to the package's module, where bundlers with `new URL(…, import.meta.url)` place it. */
  workerUrl: string | URL | undefined;
  /** Address of `mgm_web_bg.wasm`. Default: next to the package's module. */
  wasmUrl: string | URL | undefined;
}

/** Settings of the whole package. Change them before the first call. */
export const env: Environment = { hubUrl: "https://huggingface.co", workerUrl: undefined, wasmUrl: undefined };

/** The base of relative addresses: the page's, or in a worker the script's. `undefined` outside browsers. */
export const baseUrl = (): string | undefined => globalThis.document?.baseURI ?? globalThis.location?.href;

/**
 * The URL of a bundle's folder, with a slash at its end. Accepts `"hf:owner/name"`, relative addresses, and the address of the folder's
 * `bundle.json`.
 *
 * @throws {@link MgmError} `invalid-argument`.
 */
export function bundleUrl(source: string | URL): string {
  const text = String(source);
  let url: URL;
  try {
    url = new URL(text.startsWith("hf:") ? hubUrl(text) : text, baseUrl());
  } catch (cause) {
    if (cause instanceof MgmError) throw cause;
    const hint = baseUrl() === undefined ? " (relative addresses need a page)" : "";
    throw new MgmError("invalid-argument", `${JSON.stringify(text)} is not a URL${hint}`, { cause });
  }
  url.hash = "";
  if (url.pathname.endsWith("/bundle.json")) url.pathname = url.pathname.slice(0, -"bundle.json".length);
  if (!url.pathname.endsWith("/")) url.pathname += "/";
  return url.href;
}

/** The address of a folder on the Hub: `hf:owner/name[@revision][/folder]`. A slash in a revision is written `%2F`. */
function hubUrl(source: string): string {
  const [, repository, revision = "main", folder = ""] = /^hf:([\w.-]+\/[\w.-]+)(?:@([^/\s]+))?(?:\/(\S*))?$/.exec(source) ?? [];
  if (repository === undefined) {
    throw new MgmError("invalid-argument", `${JSON.stringify(source)} does not name a repository: write "hf:owner/name", "hf:owner/name@revision" or "hf:owner/name@revision/folder"`);
  }
  return `${env.hubUrl.replace(/\/+$/, "")}/${repository}/resolve/${revision}/${folder}`;
}
