import { MgmError } from "./errors.js";
import type { HubSource } from "./protocol.js";

/** Where the package finds its files and models: see {@link env}. */
export interface Environment {
  /** The host of `"hf:owner/name"` sources. Default: `https://huggingface.co`. */
  hubUrl: string;
  /**
   * A token for private and gated repositories of the Hub (a read token from the account's settings). Sent to `hubUrl` only. Every script of
   * the page can read it.
   */
  hubToken: string | undefined;
  /** Address of `worker.js`. Default: next to the package's module, where bundlers with `new URL(…, import.meta.url)` place it. */
  workerUrl: string | URL | undefined;
  /** Address of `mgm_web_bg.wasm`. Default: next to the package's module. */
  wasmUrl: string | URL | undefined;
}

/** Settings of the whole package. Change them before the first call. */
export const env: Environment = { hubUrl: "https://huggingface.co", hubToken: undefined, workerUrl: undefined, wasmUrl: undefined };

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

/** The repository that `hf:owner/name[@revision][/folder]`, or the address it stands for, names; `undefined` for another source. */
export function hubSource(source: string | URL): HubSource | undefined {
  const text = String(source);
  if (text.startsWith("hf:")) return parseHub(text);
  const path = text.startsWith(`${hubEndpoint()}/`) ? text.slice(hubEndpoint().length) : "";
  const [, repository, revision, folder = ""] = /^\/([\w.-]+\/[\w.-]+)\/resolve\/([^/\s]+)\/(\S*)$/.exec(path) ?? [];
  return repository === undefined || revision === undefined ? undefined : hubFolder(repository, revision, folder);
}

const hubEndpoint = (): string => env.hubUrl.replace(/\/+$/, "");

const hubFolder = (repository: string, revision: string, folder: string): HubSource => ({
  endpoint: hubEndpoint(),
  repository,
  revision,
  folder: folder.replace(/\/+$/, ""),
  ...(env.hubToken !== undefined && { token: env.hubToken }),
});

/** Whether a source is a GGUF file, which keeps its precision. */
export const isGguf = ({ folder }: HubSource): boolean => folder.endsWith(".gguf");

/** The headers of requests to the Hub. Browsers drop the token where a redirect leads to another origin. */
export const hubHeaders = (source: HubSource | undefined): Record<string, string> =>
  source?.token === undefined ? {} : { Authorization: `Bearer ${source.token}` };

/** The address of a folder on the Hub. */
function hubUrl(source: string): string {
  const { endpoint, repository, revision, folder } = parseHub(source);
  return `${endpoint}/${repository}/resolve/${revision}/${folder}`;
}

/** Parses `hf:owner/name[@revision][/folder]`. A slash in a revision is written `%2F`. */
function parseHub(source: string): HubSource {
  const [, repository, revision = "main", folder = ""] = /^hf:([\w.-]+\/[\w.-]+)(?:@([^/\s]+))?(?:\/(\S*))?$/.exec(source) ?? [];
  if (repository === undefined) {
    throw new MgmError("invalid-argument", `${JSON.stringify(source)} does not name a repository: write "hf:owner/name", "hf:owner/name@revision" or "hf:owner/name@revision/folder"`);
  }
  return hubFolder(repository, revision, folder);
}
