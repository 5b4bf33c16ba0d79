// mgm and its peers on one machine, alternating: medians and ratios in one table.
//
//     node benches/race.mjs MGM FILE.gguf FOLDER     (`make bench` calls it) writes FOLDER/race.json and FOLDER/race.txt
//
// 1. FILE's prefill and decode: mgm, llama.cpp's Vulkan build on the same Vulkan device, llama.cpp's CPU build;
// 2. f32 products and convolutions: mgm, and burn on wgpu (benches/burn), on the same adapter;
// 3. kernels in Chromium: mgm, and onnxruntime-web (web/benches/race.mjs);
// 4. every kernel against the adapter's limits (`mgm bench --roofline`): medians, and fastest run over fastest run.
//
// RACE=language,burn,web,roofline runs only some of them, ROUNDS=5 races in five rounds instead of three. The table says what could not
// run.
import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const [mgm, file, folder] = process.argv.slice(2);
const here = dirname(fileURLToPath(import.meta.url));
const rounds = Number(process.env.ROUNDS ?? 3);
const wanted = new Set((process.env.RACE ?? "language,burn,web,roofline").split(","));
const [prefill, decode, slowDecode] = [128, 32, 8];

const lines = [];
const say = (line = "") => {
  console.log(line);
  lines.push(line);
};
const median = (values) => values.toSorted((a, b) => a - b)[values.length >> 1];
const row = ([name, ...cells]) => [name.padEnd(46), ...cells.map((cell) => cell.padStart(13))].join(" ");
const times = (ratio) => `x ${ratio.toFixed(2)}`;

/** What a program prints on its last line, as JSON; nothing, and a message, if it fails. */
function run(program, parameters, env = {}) {
  try {
    const output = execFileSync(program, parameters.map(String), {
      env: { ...process.env, ...env }, encoding: "utf8", timeout: 600_000, stdio: ["ignore", "pipe", "ignore"],
    });
    return JSON.parse(output.trim().split("\n").at(-1));
  } catch (error) {
    console.error(`${program} ${parameters.join(" ")}: ${error.message.split("\n")[0]}`);
    return undefined;
  }
}

/** Every racer in every round, one after the other; those that failed have no runs. */
function inTurns(racers) {
  const results = Object.fromEntries(Object.keys(racers).map((name) => [name, []]));
  for (let round = 0; round < rounds; round++)
    for (const [name, race] of Object.entries(racers)) {
      const result = race();
      if (result !== undefined) results[name].push(result);
    }
  return results;
}

function language() {
  const peer = (backend, tokens, env) =>
    run(process.execPath, [join(here, "peers/llama_cpp.mjs"), file, backend, prefill, tokens], env);
  // llama.cpp leaves devices that are CPUs out, unless they are named.
  const device = { GGML_VK_VISIBLE_DEVICES: process.env.GGML_VK_VISIBLE_DEVICES ?? "0" };
  const results = inTurns({
    mgm: () => run(mgm, ["bench", "--gguf", file, "--prefill", prefill, "--decode", decode, "--json"]),
    // Few tokens: on a software adapter it decodes one or two a second.
    "llama.cpp vulkan": () => peer("vulkan", slowDecode, device),
    "llama.cpp cpu": () => peer("cpu", decode),
  });
  const rates = ["prefill_tokens_per_s", "decode_tokens_per_s"];
  const racers = Object.entries(results).filter(([, runs]) => runs.length > 0).map(([name, runs]) => ({
    name,
    device: runs[0].adapter ?? runs[0].device,
    ...Object.fromEntries(rates.map((rate) => [rate, median(runs.map((one) => one[rate]))])),
  }));
  const own = racers.find(({ name }) => name === "mgm");
  say(`${file.split("/").at(-1)}, ${prefill} tokens in, ${decode} out (llama.cpp vulkan: ${slowDecode}), tokens a second`);
  say(row(["", "prefill", "mgm is", "decode", "mgm is"]));
  for (const racer of racers) {
    racer.ratios = own && rates.map((rate) => own[rate] / racer[rate]);
    const cells = rates.flatMap((rate, i) => [racer[rate].toFixed(1), racer.ratios ? times(racer.ratios[i]) : ""]);
    say(row([`${racer.name} (${racer.device})`, ...cells]));
  }
  return { file, prefill, decode, racers };
}

function burn() {
  const program = join(here, "../target/burn/release/mgm-bench-burn");
  let software = false;
  const results = inTurns({
    mgm: () => {
      const report = run(mgm, ["bench", "--roofline", "--only", "f32", "--json"]);
      software = report?.software ?? software;
      return report;
    },
    // Three calls a kernel: what burn tries before it chooses takes minutes on a slow adapter.
    burn: () => run(program, [3], software ? { CUBECL_WGPU_DEFAULT_DEVICE: "Cpu" } : {}),
  });
  const milliseconds = (runs, kernel) =>
    median(runs.map(({ rows }) => rows.find((one) => one.kernel === kernel)?.milliseconds ?? Number.NaN));
  if (results.mgm.length === 0 || results.burn.length === 0) return undefined;
  const kernels = results.burn[0].rows.map(({ kernel }) => kernel);
  say("Kernels natively, milliseconds");
  say(row(["", "mgm", "burn", "mgm is"]));
  return kernels.map((kernel) => {
    const [ours, theirs] = [milliseconds(results.mgm, kernel), milliseconds(results.burn, kernel)];
    say(row([kernel, ours.toFixed(2), theirs.toFixed(2), times(theirs / ours)]));
    return { kernel, mgm: ours, burn: theirs, ratio: theirs / ours };
  });
}

function web() {
  const out = join(folder, "web.json");
  try {
    execFileSync(process.execPath, [join(here, "../web/benches/race.mjs"), out, String(rounds)], { stdio: ["ignore", "ignore", "inherit"] });
  } catch (error) {
    console.error(`web/benches/race.mjs: ${error.message.split("\n")[0]}`);
    return undefined;
  }
  const result = JSON.parse(readFileSync(out, "utf8"));
  say(`Kernels in Chromium on ${result.adapter}, milliseconds`);
  say(row(["", "mgm", "ORT web", "mgm is"]));
  for (const { kernel, mgm: ours, onnxruntime, ratio } of result.rows)
    say(row([kernel, ours.toFixed(2), onnxruntime.toFixed(2), times(ratio)]));
  return result;
}

function roofline() {
  const report = run(mgm, ["bench", "--roofline", "--json"]);
  if (!report) return undefined;
  say(`Kernels on ${report.adapter}: reads ${report.read_gigabytes_per_s.toFixed(2)} GB/s, ` +
    `multiply-adds ${report.fma_gflop_per_s.toFixed(1)} GFLOP/s`);
  say(row(["", "MB", "MFLOP", "floor, ms", "ms", "of the floor"]));
  for (const { kernel, milliseconds, megabytes, megaflop, floor_ms, fraction_of_floor } of report.rows)
    say(row([
      kernel, megabytes.toFixed(2), megaflop.toFixed(1), floor_ms.toFixed(3), milliseconds.toFixed(3),
      `${Math.round(100 * fraction_of_floor)} %`,
    ]));
  return report;
}

mkdirSync(folder, { recursive: true });
const result = { date: new Date().toISOString(), rounds };
for (const [name, part] of Object.entries({ language, burn, web, roofline })) {
  if (!wanted.has(name)) continue;
  result[name] = part();
  say();
  // After every part: the next may be stopped.
  writeFileSync(join(folder, "race.json"), `${JSON.stringify(result, null, 2)}\n`);
  writeFileSync(join(folder, "race.txt"), `${lines.join("\n")}\n`);
}
