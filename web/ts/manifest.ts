// What a bundle's manifest says, and what kind of model files are.

import { MgmError } from "./errors.js";

export const MANIFEST = "bundle.json";
/** What diffusers' folders, and bundles of them, have and others do not. */
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
    throw new MgmError("config", `${url}${MANIFEST} is no JSON: is this the address of a bundle?`, { cause });
  }
  const whole = (entry: Partial<BundleFile> | null) =>
    /^[A-Za-z0-9_-][A-Za-z0-9._-]*$/.test(entry?.file ?? "") &&
    /^[0-9a-f]{64}$/.test(entry?.sha256 ?? "") &&
    Number.isSafeInteger(entry?.bytes) && (entry?.bytes ?? -1) >= 0;
  if (!Array.isArray(manifest?.files) || !Array.isArray(manifest.shards) || ![...manifest.files, ...manifest.shards].every(whole)) {
    throw new MgmError("config", `${url}${MANIFEST} is not the manifest of a bundle`);
  }
  return { name: String(manifest.name ?? ""), files: manifest.files, shards: manifest.shards, configs: manifest.configs ?? {} };
}

/** Whether a bundle holds a model that paints. */
export const isPainter = ({ configs }: Manifest): boolean => MODEL_INDEX in (configs ?? {});

/** What files by their paths are: the model's name, if they tell it, and whether it paints. */
export async function identify(files: Map<string, Blob>): Promise<{ name: string; paints: boolean }> {
  // What lies least deep counts, as for the core; of what lies equally deep, a manifest before a configuration.
  const marks = [MANIFEST, "config.json", MODEL_INDEX];
  const depth = (path: string) => path.split("/").length;
  const order = (path: string) => marks.indexOf(path.split("/").at(-1) ?? "");
  const [path, blob] =
    [...files]
      .filter(([path]) => order(path) >= 0)
      .sort(([a], [b]) => depth(a) - depth(b) || order(a) - order(b))[0] ?? [];
  if (path !== undefined && blob && order(path) === 0) {
    try {
      const manifest = parseManifest(await blob.text(), "");
      return { name: manifest.name, paints: isPainter(manifest) };
    } catch {
      // The core says what is wrong with it.
      return { name: "", paints: false };
    }
  }
  const paints = path !== undefined && order(path) === marks.indexOf(MODEL_INDEX);
  return { name: path?.split("/").at(-2) ?? "", paints };
}
