// Loads a bundle of 200 MB at 100 Mbit/s, then from the device: times, and the peak memory of the browser's processes.
// Prints a table and writes JSON to a file: load.mjs [FILE].

import { execFileSync } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync, openSync, readFileSync, rmSync, writeFileSync, writeSync, closeSync } from "node:fs";
import { dirname, join } from "node:path";
import { goldens, launch, mgm, openPage, web } from "../tests/browser.mjs";
import { serve } from "../tests/server.mjs";

const LINE = 100e6 / 8;
const MIN_BYTES = 200e6;
const target = process.env.CARGO_TARGET_DIR ?? join(dirname(web), "target");

/** Writes a language model of random bf16 weights whose q4 bundle has 200 MB. */
function checkpoint(folder) {
  const given = join(goldens, "vicuna-7b", "MGM-7B");
  const { vocab_size: vocab, ...config } = JSON.parse(readFileSync(join(given, "config.json")));
  for (const name of Object.keys(config)) if (/^mm_|^image_|vision|^head_dim$/.test(name)) delete config[name];
  const [hidden, ffn, layers, heads] = [1024, 4096, 20, 16];
  mkdirSync(folder, { recursive: true });
  copyFileSync(join(given, "tokenizer.model"), join(folder, "tokenizer.model"));
  copyFileSync(join(given, "tokenizer_config.json"), join(folder, "tokenizer_config.json"));
  writeFileSync(join(folder, "config.json"), JSON.stringify({
    ...config, architectures: ["LlamaForCausalLM"], model_type: "llama", vocab_size: vocab, hidden_size: hidden, intermediate_size: ffn,
    num_hidden_layers: layers, num_attention_heads: heads, num_key_value_heads: heads,
  }));
  const shapes = { "model.embed_tokens.weight": [vocab, hidden], "model.norm.weight": [hidden], "lm_head.weight": [vocab, hidden] };
  for (let layer = 0; layer < layers; layer++) {
    const prefix = `model.layers.${layer}.`;
    for (const name of "qkvo") shapes[`${prefix}self_attn.${name}_proj.weight`] = [hidden, hidden];
    for (const name of ["gate", "up"]) shapes[`${prefix}mlp.${name}_proj.weight`] = [ffn, hidden];
    shapes[`${prefix}mlp.down_proj.weight`] = [hidden, ffn];
    for (const name of ["input", "post_attention"]) shapes[`${prefix}${name}_layernorm.weight`] = [hidden];
  }
  const header = {};
  let at = 0;
  for (const [name, shape] of Object.entries(shapes)) {
    const bytes = 2 * shape.reduce((a, b) => a * b);
    header[name] = { dtype: "BF16", shape, data_offsets: [at, at + bytes] };
    at += bytes;
  }
  const text = Buffer.from(JSON.stringify(header));
  const file = openSync(join(folder, "model.safetensors"), "w");
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  writeSync(file, length);
  writeSync(file, text);
  // bf16 values from 0.0156 to 0.03, of both signs.
  const block = Uint16Array.from({ length: 1 << 20 }, (_, i) => (((i * 40503) >> 3) & 0x807f) | 0x3c80);
  for (let left = at; left > 0; left -= block.byteLength) writeSync(file, new Uint8Array(block.buffer, 0, Math.min(left, block.byteLength)));
  closeSync(file);
}

function bundle() {
  const folder = join(target, "web-bundles", "load-q4");
  if (!existsSync(join(folder, "bundle.json"))) {
    const source = join(target, "web-bundles", "load-source");
    checkpoint(source);
    execFileSync(mgm, ["pack", source, "--out", folder], { stdio: "inherit" });
    rmSync(source, { recursive: true });
  }
  const { files, shards } = JSON.parse(readFileSync(join(folder, "bundle.json")));
  const bytes = [...files, ...shards].reduce((sum, { bytes }) => sum + bytes, 0);
  if (bytes < MIN_BYTES) throw new Error(`the bundle has only ${bytes} bytes`);
  return { folder, bytes };
}

/** Peak resident memory of the browser's processes by kind, in bytes. */
async function peaks(context) {
  const session = await context.browser()?.newBrowserCDPSession() ?? await context.newCDPSession(context.pages()[0]);
  const { processInfo } = await session.send("SystemInfo.getProcessInfo");
  const result = {};
  for (const { id, type } of processInfo) {
    const peak = /VmHWM:\s+(\d+) kB/.exec(readFileSync(`/proc/${id}/status`, "utf8"));
    result[type] = Math.max(result[type] ?? 0, Number(peak?.[1] ?? 0) * 1024);
  }
  return result;
}

const { folder, bytes } = bundle();
const server = await serve({ "/": join(web, "tests/page"), "/dist/": join(web, "dist"), "/model/": folder }, { bytesPerSecond: LINE });
const context = await launch();
try {
  const load = async () => {
    const page = await openPage(context, `${server.url}/`);
    const begun = performance.now();
    const heap = await page.evaluate(async () => {
      const mgm = await Mgm.load("/model/");
      const { wasm } = await mgm.memory();
      mgm.dispose();
      return wasm;
    });
    const seconds = (performance.now() - begun) / 1000;
    const memory = await peaks(context).catch((error) => ({ unknown: error.message }));
    await page.close();
    return { seconds, heap, memory };
  };
  const [first, second] = [await load(), await load()];
  const megabytes = (bytes) => `${Math.round(bytes / 1e6)} MB`;
  console.log(`bundle of ${megabytes(bytes)}, line of 100 Mbit/s`);
  for (const [name, { seconds, heap, memory }] of Object.entries({ first, second })) {
    const processes = Object.entries(memory).map(([type, peak]) => `${type} ${typeof peak === "number" ? megabytes(peak) : peak}`);
    console.log(`${name.padEnd(7)}${seconds.toFixed(1)} s   wasm heap ${megabytes(heap)}   peaks: ${processes.join(", ")}`);
  }
  console.log(`ratio  ${(first.seconds / second.seconds).toFixed(1)}`);
  if (process.argv[2]) writeFileSync(process.argv[2], JSON.stringify({ bytes, first, second }));
} finally {
  await context.close();
  await server.close();
}
