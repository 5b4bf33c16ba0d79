// Entries of the demo page's `models.json`.

import { existsSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

/** The folder of the models that are bundled with the repository. */
export const bundled = join(dirname(dirname(dirname(fileURLToPath(import.meta.url)))), "models");

/** Released models on the Hugging Face Hub, which the page imports. Sizes are estimates: the page asks the Hub before it downloads one. */
export const released = JSON.parse(readFileSync(new URL("../demo/released.json", import.meta.url)));

/** The entry of a bundle, in a list; an empty list if the folder is not a bundle. */
export function modelEntry(folder, bundle) {
  const file = join(folder, bundle, "bundle.json");
  if (!existsSync(file)) return [];
  const { name, precision, files, shards, configs } = JSON.parse(readFileSync(file));
  const isBundled = folder === bundled;
  return [{
    name: isBundled ? name : `${name} (${precision})`,
    url: `models/${bundle}/`,
    bytes: [...files, ...shards].reduce((sum, { bytes }) => sum + bytes, 0),
    imageGeneration: "model_index.json" in (configs ?? {}),
    bundled: isBundled,
    ...(isBundled && !("model_index.json" in (configs ?? {})) && { knowsOnly: "its own small world of emoji, shapes, printed words and numbers" }),
  }];
}
