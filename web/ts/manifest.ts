// The manifest of a bundle, and what kind of model a set of files is.

import { MgmError } from "./errors.js";
import type { ModelSummary } from "./types.js";

export const MANIFEST = "bundle.json";
/** In the folders of image models in diffusers' layout, and in bundles of them. */
const MODEL_INDEX = "model_index.json";

export interface BundleFile {
  file: string;
  bytes: number;
  sha256: string;
  part: string;
}

export interface Manifest {
  name: string;
  files: BundleFile[];
  shards: BundleFile[];
  configs?: Record<string, unknown>;
}

/** Reads the manifest of the bundle at `url`. */
export function parseManifest(text: string, url: string): Manifest {
  let manifest: Partial<Manifest> | null;
  try {
    manifest = JSON.parse(text) as Partial<Manifest> | null;
  } catch (cause) {
    throw new MgmError("config", `${url}${MANIFEST} is not JSON: is this the URL of a bundle?`, { cause });
  }
  const isValid = (entry: Partial<BundleFile> | null) =>
    /^[A-Za-z0-9_-][A-Za-z0-9._-]*$/.test(entry?.file ?? "") &&
    /^[0-9a-f]{64}$/.test(entry?.sha256 ?? "") &&
    Number.isSafeInteger(entry?.bytes) && (entry?.bytes ?? -1) >= 0;
  if (!Array.isArray(manifest?.files) || !Array.isArray(manifest.shards) || ![...manifest.files, ...manifest.shards].every(isValid)) {
    throw new MgmError("config", `${url}${MANIFEST} is not the manifest of a bundle`);
  }
  return { name: String(manifest.name ?? ""), files: manifest.files, shards: manifest.shards, configs: manifest.configs ?? {} };
}

/** What the model of a bundle is. */
export const summary = ({ name, configs }: Manifest): ModelSummary => ({ name, imageGeneration: MODEL_INDEX in (configs ?? {}) });

/** What the model in these files is; keys are paths. */
export async function inspectFiles(files: Map<string, Blob>): Promise<ModelSummary> {
  // The shallowest of these files decides, as in the core; at equal depth the first of the list.
  const markers = [MANIFEST, "config.json", MODEL_INDEX];
  const depth = (path: string) => path.split("/").length;
  const order = (path: string) => markers.indexOf(path.split("/").at(-1) ?? "");
  const [path, blob] =
    [...files]
      .filter(([path]) => order(path) >= 0)
      .sort(([a], [b]) => depth(a) - depth(b) || order(a) - order(b))[0] ?? [];
  if (path === undefined || !blob) return { name: "", imageGeneration: false };
  if (order(path) !== 0) return { name: path.split("/").at(-2) ?? "", imageGeneration: path.endsWith(MODEL_INDEX) };
  try {
    return summary(parseManifest(await blob.text(), ""));
  } catch {
    // The core reports what is wrong with the manifest.
    return { name: "", imageGeneration: false };
  }
}
