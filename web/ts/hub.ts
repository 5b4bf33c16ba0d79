// Models in repositories of the Hugging Face Hub, in the formats in which they are released. For the worker.

import { modelFiles, towerFiles, towersOf } from "./wasm/mgm_web.js";
import { hubHeaders, isGguf } from "./env.js";
import { MgmError } from "./errors.js";
import { request, retry, StatusError } from "./http.js";
import type { HubSource } from "./protocol.js";
import { RemoteFile } from "./remote-file.js";

const CONFIG = "config.json";

/** A model's files. */
export interface HubModel {
  /** The model's name. */
  name: string;
  /** By path, with a checkpoint's towers where it looks for them. */
  files: Map<string, RemoteFile>;
  /** The commits that the files are from: the same text means the same bytes. */
  version: string;
}

/** See `Tower` of `web/src/conversion.rs`. */
interface Tower {
  repo: string;
  folder: string;
  /** File names of its weights, in order of preference. */
  formats: string[];
}

interface Snapshot {
  repo: string;
  commit: string;
  /** Sizes by name. */
  sizes: Map<string, number>;
}

/** The response of the Hub's API, as far as it is used. */
interface Listing {
  sha?: string;
  siblings?: { rfilename: string; size?: number; lfs?: { size?: number } }[];
}

/** Finds the files of the model that a source names. */
export async function findModel(source: HubSource, signal: AbortSignal): Promise<HubModel> {
  const { repository, revision, folder } = source;
  const main = await list(source, repository, revision, signal);
  const name = repository.slice(repository.indexOf("/") + 1);
  const open = ({ repo, commit, sizes }: Snapshot, file: string) => {
    const path = file.split("/").map(encodeURIComponent).join("/");
    return new RemoteFile(`${source.endpoint}/${repo}/resolve/${commit}/${path}`, sizes.get(file) ?? 0, hubHeaders(source), signal);
  };
  if (isGguf(source)) {
    if (!main.sizes.has(folder)) throw new MgmError("missing-file", `${repository} has no file ${folder} at ${revision}`);
    return { name: folder.slice(folder.lastIndexOf("/") + 1, folder.lastIndexOf(".")), files: new Map([[folder, open(main, folder)]]), version: main.commit };
  }
  const prefix = folder === "" ? "" : `${folder}/`;
  const names = [...main.sizes.keys()].filter((file) => file.startsWith(prefix)).map((file) => file.slice(prefix.length));
  const files = new Map(modelFiles(repository, names).map((file) => [`${name}/${file}`, open(main, prefix + file)]));
  const versions = [main.commit];
  const config = files.get(`${name}/${CONFIG}`);
  if (config) {
    const text = await config.read(0, config.size);
    for (const { repo, folder, formats } of JSON.parse(towersOf(`${repository}/${CONFIG}`, text)) as Tower[]) {
      const tower = await list(source, repo, "main", signal);
      versions.push(tower.commit);
      for (const file of towerFiles([...tower.sizes.keys()], formats)) files.set(`${folder}/${file}`, open(tower, file));
    }
  }
  return { name, files, version: versions.join(" ") };
}

/** Lists the files of a repository at a branch, tag or commit. */
async function list(source: HubSource, repo: string, revision: string, signal: AbortSignal): Promise<Snapshot> {
  const url = `${source.endpoint}/api/models/${repo}/revision/${encodeURIComponent(decodeURIComponent(revision))}?blobs=true`;
  const headers = hubHeaders(source);
  const fetched = retry(url, signal, async (isRetry) => {
    return (await request(url, { headers, signal, cache: isRetry ? "no-store" : "no-cache" })).text();
  });
  const text = await fetched.catch((error: unknown) => {
    throw error instanceof StatusError && [401, 403, 404].includes(error.status) ? notFound(source, repo, revision, error) : error;
  });
  let listing: Listing;
  try {
    listing = JSON.parse(text) as Listing;
  } catch (cause) {
    throw new MgmError("http", `${url}: the response is not a list of files`, { cause });
  }
  const sizes = new Map((listing.siblings ?? []).map(({ rfilename, size, lfs }) => [rfilename, lfs?.size ?? size ?? 0]));
  return { repo, commit: listing.sha ?? revision, sizes };
}

function notFound({ endpoint, token }: HubSource, repo: string, revision: string, cause: StatusError): MgmError {
  const hint = token === undefined ? "for a private one, set env.hubToken" : "for a private one, the token in env.hubToken needs access";
  const message = `${endpoint} has no public repository ${repo} with a revision ${revision} (status ${cause.status}): check the name; ${hint}; for a gated one, accept its terms on its page`;
  return new MgmError("http", message, { cause });
}
