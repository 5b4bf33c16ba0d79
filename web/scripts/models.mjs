// Bundles as the demo page's `models.json` lists them.

import { existsSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

/** The folder of the models that come with the program. */
export const shipped = join(dirname(dirname(dirname(fileURLToPath(import.meta.url)))), "models");

/** The entry of a folder's bundle, in a list; of what is no bundle an empty one. */
export function entry(folder, bundle) {
  const file = join(folder, bundle, "bundle.json");
  if (!existsSync(file)) return [];
  const { name, precision, files, shards, configs } = JSON.parse(readFileSync(file));
  const paints = "model_index.json" in (configs ?? {});
  const bytes = [...files, ...shards].reduce((sum, entry) => sum + entry.bytes, 0);
  const starts = folder === shipped;
  return [{ name: starts ? name : `${name} (${precision})`, url: `models/${bundle}/`, bytes, paints, starts }];
}
