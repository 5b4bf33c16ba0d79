// This project and llama.cpp on the same machine and the same file, in turns: medians and ratios.
//
//     node race.mjs MGM FILE.gguf [ROUNDS]     text on standard error, one JSON object on standard output
//
// Set GGML_VK_VISIBLE_DEVICES and VK_ICD_FILENAMES so that both see the same Vulkan device.
import {execFileSync} from "node:child_process";
import {dirname, join} from "node:path";
import {fileURLToPath} from "node:url";

const [mgm, file, roundsText = "3"] = process.argv.slice(2);
const here = dirname(fileURLToPath(import.meta.url));
const [prefill, decode] = [128, 32];

const run = (program, parameters, env = {}) => {
    try {
        const output = execFileSync(program, parameters, {
            env: {...process.env, ...env}, encoding: "utf8", timeout: 300_000, stdio: ["ignore", "pipe", "ignore"],
        });
        return JSON.parse(output.trim().split("\n").at(-1));
    } catch (error) {
        console.error(`${program} ${parameters.join(" ")}: ${error.message}`);
        return undefined;
    }
};
const peer = (backend, tokens) => run(process.execPath, [join(here, "llama_cpp.mjs"), file, backend, prefill, tokens, 1]);
const racers = {
    "mgm": () => run(mgm, ["bench", "--gguf", file, "--prefill", prefill, "--decode", decode, "--json"]),
    "llama.cpp cpu": () => peer("cpu", decode),
    // Few tokens: it decodes about one a second on a software adapter.
    "llama.cpp vulkan": () => peer("vulkan", 8),
};

const results = Object.fromEntries(Object.keys(racers).map((name) => [name, []]));
for (let round = 0; round < Number(roundsText); round++)
    for (const [name, race] of Object.entries(racers)) {
        const result = race();
        if (result !== undefined)
            results[name].push(result);
    }

const median = (values) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];
const rates = ["prefill_tokens_per_s", "decode_tokens_per_s", "load_ms"];
const table = Object.entries(results).filter(([, runs]) => runs.length > 0).map(([name, runs]) => ({
    name,
    rounds: runs.length,
    ...Object.fromEntries(rates.map((rate) => [rate, median(runs.map((one) => one[rate]))])),
}));
const own = table.find(({name}) => name === "mgm");
console.error(`${"".padEnd(18)} ${"prefill t/s".padStart(12)} ${"mgm is".padStart(8)} ${"decode t/s".padStart(12)} ${"mgm is".padStart(8)} ${"load ms".padStart(9)}`);
for (const row of table) {
    row.prefill_ratio = own && own.prefill_tokens_per_s / row.prefill_tokens_per_s;
    row.decode_ratio = own && own.decode_tokens_per_s / row.decode_tokens_per_s;
    const times = (ratio) => ratio === undefined ? "" : `x ${ratio.toFixed(2)}`;
    console.error([
        row.name.padEnd(18), row.prefill_tokens_per_s.toFixed(1).padStart(12), times(row.prefill_ratio).padStart(8),
        row.decode_tokens_per_s.toFixed(1).padStart(12), times(row.decode_ratio).padStart(8), row.load_ms.toFixed(0).padStart(9),
    ].join(" "));
}
console.log(JSON.stringify({file, prefill, decode, table}));
