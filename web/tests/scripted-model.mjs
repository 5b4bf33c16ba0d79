// A language model that answers every question with `<h> a gold mine</h>`, as in native/tests/cli/generate.rs. Its layers add nothing to
// the residual stream, so that the next token depends only on the last one, and its head maps each token of the answer to the next.

import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { bundles, goldens } from "./browser.mjs";

// `:` of "ASSISTANT:", `<h>`, the words, `</h>` in byte tokens (so that no token occurs twice), end of sequence.
const TOKENS = [586, 595, 533, 596, 262, 472, 513, 535, 287, 267, 525, 63, 50, 107, 65, 2];

/** The folder of the checkpoint. Created once. */
export function scriptedModel() {
  const folder = join(bundles, "scripted-checkpoint");
  if (existsSync(folder)) return join(folder, "MGM-7B");
  const fresh = `${folder}.new`;
  rmSync(fresh, { recursive: true, force: true });
  mkdirSync(fresh, { recursive: true });
  cpSync(join(goldens, "vicuna-7b"), fresh, { recursive: true });
  const model = join(fresh, "MGM-7B");
  const files = readdirSync(model).filter((file) => file.endsWith(".safetensors")).map((file) => open(join(model, file)));
  const find = (name) => files.map((file) => file.tensors.get(name)).find(Boolean);
  const [embeddings, norm, head] = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"].map(find);
  const width = norm.length;
  head.fill(0);
  for (const [index, token] of TOKENS.slice(0, -1).entries()) {
    const embedding = embeddings.subarray(token * width, (token + 1) * width);
    const scale = 1 / Math.sqrt(embedding.reduce((sum, x) => sum + x * x, 0) / width + 1e-5);
    const state = embedding.map((x, column) => x * scale * norm[column]);
    const square = state.reduce((sum, x) => sum + x * x, 0);
    const row = TOKENS[index + 1] * width;
    for (const [column, x] of state.entries()) head[row + column] = (30 * x) / square;
  }
  for (const { path, bytes, tensors } of files) {
    for (const [name, values] of tensors) {
      if (/self_attn\.o_proj\.weight$|mlp\.down_proj\.weight$/.test(name)) values.fill(0);
    }
    writeFileSync(path, bytes);
  }
  renameSync(fresh, folder);
  return join(folder, "MGM-7B");
}

/** Opens a safetensors file of f32 tensors, with views of them. */
function open(path) {
  const file = readFileSync(path);
  const length = Number(file.readBigUInt64LE(0));
  const header = JSON.parse(file.subarray(8, 8 + length).toString());
  // Float32Array needs an offset that is a multiple of 4.
  const bytes = new Uint8Array(file.length + 4);
  const shift = (4 - ((8 + length) % 4)) % 4;
  bytes.set(file, shift);
  const tensors = new Map();
  for (const [name, { dtype, data_offsets: [start, end] = [] }] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    if (dtype !== "F32") throw new Error(`${name} is ${dtype}`);
    tensors.set(name, new Float32Array(bytes.buffer, shift + 8 + length + start, (end - start) / 4));
  }
  return { path, bytes: bytes.subarray(shift, shift + file.length), tensors };
}
