// This project's kernels and those of onnxruntime-web, alternately, in the same browser on the same adapter. Prints a table and writes JSON
// to a file: race.mjs [FILE] [ROUNDS].

import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { launch, openPage, web } from "../tests/browser.mjs";
import { serve } from "../tests/server.mjs";
import { graph, model } from "./onnx.mjs";

const here = dirname(fileURLToPath(import.meta.url));
const ROUNDS = Number(process.argv[3] ?? 3);
const values = (count) => Float32Array.from({ length: count }, (_, i) => Math.sin(i * 0.37) * 0.1);
const codes = (count) => Uint8Array.from({ length: count }, (_, i) => (i * 37) & 255);

const matmul = (m, k, n) => model({
  operator: "MatMul",
  inputs: [{ name: "x", dims: [m, k] }],
  weights: [{ name: "w", dims: [k, n], data: values(k * n) }],
  output: { name: "y", dims: [m, n] },
});
const matmulNBits = (m, k, n) => model({
  operator: "MatMulNBits",
  domain: "com.microsoft",
  attributes: { K: k, N: n, bits: 4, block_size: 32, accuracy_level: 1 },
  inputs: [{ name: "x", dims: [m, k] }],
  weights: [
    { name: "w", dims: [n, k / 32, 16], data: codes((n * k) / 2) },
    { name: "scales", dims: [(n * k) / 32], data: values((n * k) / 32) },
  ],
  output: { name: "y", dims: [m, n] },
});
const depthwise = (channels, side) => model({
  operator: "Conv",
  attributes: { group: channels, kernel_shape: [7, 7], pads: [3, 3, 3, 3] },
  inputs: [{ name: "x", dims: [1, channels, side, side] }],
  weights: [
    { name: "w", dims: [channels, 1, 7, 7], data: values(channels * 49) },
    { name: "b", dims: [channels], data: values(channels) },
  ],
  output: { name: "y", dims: [1, channels, side, side] },
});
const convolution = (channels, side) => model({
  operator: "Conv",
  attributes: { kernel_shape: [3, 3], pads: [1, 1, 1, 1] },
  inputs: [{ name: "x", dims: [1, channels, side, side] }],
  weights: [
    { name: "w", dims: [channels, channels, 3, 3], data: values(channels * channels * 9) },
    { name: "b", dims: [channels], data: values(channels) },
  ],
  output: { name: "y", dims: [1, channels, side, side] },
});
/** As exporters write it: an instance norm per group, gain and offset per channel, x * sigmoid(x). */
const groupNorm = (groups, channels, side) => graph({
  nodes: [
    { operator: "InstanceNormalization", inputs: ["x", "ones", "zeros"], output: "normed" },
    { operator: "Mul", inputs: ["normed", "gain"], output: "scaled" },
    { operator: "Add", inputs: ["scaled", "offset"], output: "moved" },
    { operator: "Sigmoid", inputs: ["moved"], output: "gate" },
    { operator: "Mul", inputs: ["moved", "gate"], output: "y" },
  ],
  inputs: [{ name: "x", dims: [1, groups, channels / groups, side * side] }],
  weights: [
    { name: "ones", dims: [groups], data: values(groups) },
    { name: "zeros", dims: [groups], data: values(groups) },
    { name: "gain", dims: [1, groups, channels / groups, 1], data: values(channels) },
    { name: "offset", dims: [1, groups, channels / groups, 1], data: values(channels) },
  ],
  output: { name: "y", dims: [1, groups, channels / groups, side * side] },
});
const attention = (times, keys, heads, width) => model({
  operator: "MultiHeadAttention",
  domain: "com.microsoft",
  attributes: { num_heads: heads },
  inputs: ["q", "k", "v"].map((name) => ({ name, dims: [1, name === "q" ? times : keys, heads * width] })),
  output: { name: "y", dims: [1, times, heads * width] },
});
const feedsOf = (times, keys, width) => ({ q: [1, times, width], k: [1, keys, width], v: [1, keys, width] });

/** Our kernel by its name in `mgm bench --roofline`, and the ONNX model. */
const KERNELS = [
  { ours: "linear f32 128 x 1024 x 1024", theirs: matmul(128, 1024, 1024), feeds: { x: [128, 1024] } },
  { ours: "linear q4 1 x 2048 x 2048", theirs: matmulNBits(1, 2048, 2048), feeds: { x: [1, 2048] } },
  { ours: "linear q4 128 x 1024 x 1024", theirs: matmulNBits(128, 1024, 1024), feeds: { x: [128, 1024] } },
  { ours: "depthwise 7x7 192 x 64 x 64", theirs: depthwise(192, 64), feeds: { x: [1, 192, 64, 64] } },
  {
    ours: "attention CLIP 577 x 16 x 64",
    theirs: attention(577, 577, 16, 64),
    feeds: feedsOf(577, 577, 1024),
  },
  { ours: "convolution f32 3x3 320 x 32 x 32", theirs: convolution(320, 32), feeds: { x: [1, 320, 32, 32] } },
  { ours: "convolution f32 3x3 1280 x 8 x 8", theirs: convolution(1280, 8), feeds: { x: [1, 1280, 8, 8] } },
  { ours: "group norm and SiLU 320 x 64 x 64", theirs: groupNorm(32, 320, 64), feeds: { x: [1, 32, 10, 4096] } },
  { ours: "attention UNet 1024 x 10 x 64", theirs: attention(1024, 1024, 10, 64), feeds: feedsOf(1024, 1024, 640) },
  { ours: "attention UNet to words 1024 to 77 x 10 x 64", theirs: attention(1024, 77, 10, 64), feeds: feedsOf(1024, 77, 640) },
];

const models = mkdtempSync(join(tmpdir(), "mgm-onnx-"));
KERNELS.forEach(({ theirs }, index) => writeFileSync(join(models, `${index}.onnx`), theirs));
const pageFolder = join(models, "page");
mkdirSync(pageFolder);
writeFileSync(join(pageFolder, "index.html"), `<!doctype html><script type="module">
  const SUBGROUPS = ${process.env.MGM_SUBGROUPS !== "0"};
  import init, { timeKernels } from "/wasm/mgm_web.js";
  import * as ort from "/ort/ort.webgpu.min.mjs";
  ort.env.wasm.wasmPaths = "/ort/";
  ort.env.wasm.numThreads = 1;
  await init("/dist/mgm_web_bg.wasm");
  const sessions = new Map();
  // As in the package's worker (ts/webgpu.ts).
  const request = GPUAdapter.prototype.requestDevice;
  GPUAdapter.prototype.requestDevice = function (descriptor) {
    const features = new Set(descriptor?.requiredFeatures);
    if (SUBGROUPS && this.features.has("subgroups")) features.add("subgroups");
    return request.call(this, { ...descriptor, requiredFeatures: [...features] });
  };
  window.ours = async (name) => JSON.parse(await timeKernels(SUBGROUPS, name))[0].milliseconds;
  window.theirs = async (index, feeds) => {
    if (!sessions.has(index)) {
      const options = { executionProviders: ["webgpu"], preferredOutputLocation: "gpu-buffer" };
      sessions.set(index, await ort.InferenceSession.create(\`/onnx/\${index}.onnx\`, options));
    }
    const session = sessions.get(index);
    const device = await ort.env.webgpu.device;
    const inputs = {};
    for (const [name, dims] of Object.entries(feeds)) {
      const count = dims.reduce((a, b) => a * b);
      const gpuBuffer = device.createBuffer({ size: count * 4, usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST });
      inputs[name] = ort.Tensor.fromGpuBuffer(gpuBuffer, { dataType: "float32", dims });
    }
    const once = async (repeat) => {
      const started = performance.now();
      for (let i = 0; i < repeat; i++) (await session.run(inputs)).y.dispose();
      await device.queue.onSubmittedWorkDone();
      return (performance.now() - started) / repeat;
    };
    await once(1);
    const repeat = Math.min(100, Math.max(1, Math.floor(50 / (await once(1)))));
    const times = [];
    const started = performance.now();
    while (times.length < 3 || (performance.now() - started < 2000 && times.length < 20)) times.push(await once(repeat));
    for (const input of Object.values(inputs)) input.gpuBuffer.destroy();
    return times.sort((a, b) => a - b)[times.length >> 1];
  };
  window.ready = true;
</script>`);

const server = await serve({
  "/": pageFolder, "/dist/": join(web, "dist"), "/wasm/": join(web, "ts/wasm"), "/onnx/": models,
  "/ort/": join(here, "node_modules/onnxruntime-web/dist"),
});
const context = await launch();
const page = await openPage(context, `${server.url}/`);
const adapter = await page.evaluate(async () => {
  const { vendor, architecture } = (await navigator.gpu.requestAdapter()).info;
  return `${vendor} ${architecture}`;
});
const median = (times) => times.toSorted((a, b) => a - b)[times.length >> 1];
const only = process.env.MGM_ONLY;
const rows = [];
console.log(`${context.browser()?.version() ?? "Chromium"}, ${adapter}; medians of ${ROUNDS} rounds, in milliseconds`);
console.log(`${"kernel".padEnd(46)} ${"mgm".padStart(10)} ${"ORT".padStart(10)} ${"ratio".padStart(7)}`);
for (const [index, { ours, feeds }] of KERNELS.entries()) {
  if (only && !ours.includes(only)) continue;
  const times = { ours: [], theirs: [] };
  for (let round = 0; round < ROUNDS; round++) {
    times.ours.push(await page.evaluate((name) => window.ours(name), ours));
    times.theirs.push(await page.evaluate(({ index, feeds }) => window.theirs(index, feeds), { index, feeds }));
  }
  const row = { kernel: ours, mgm: median(times.ours), onnxruntime: median(times.theirs) };
  row.ratio = row.onnxruntime / row.mgm;
  rows.push(row);
  console.log(`${ours.padEnd(46)} ${row.mgm.toFixed(2).padStart(10)} ${row.onnxruntime.toFixed(2).padStart(10)} ${row.ratio.toFixed(2).padStart(7)}`);
}
if (process.argv[2]) writeFileSync(process.argv[2], JSON.stringify({ adapter, rows }, null, 2));
await context.close();
await server.close();
rmSync(models, { recursive: true, force: true });
