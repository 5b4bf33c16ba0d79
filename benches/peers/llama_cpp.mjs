// Prefill and decode rates of llama.cpp on a GGUF file, as prebuilt in node-llama-cpp.
// node llama_cpp.mjs FILE cpu|vulkan PREFILL DECODE RUNS  ->  one JSON object
import {availableParallelism} from "node:os";
import {getLlama, LlamaLogLevel} from "node-llama-cpp";

const [file, backend, prefillText, decodeText, runsText] = process.argv.slice(2);
const [prefill, decode, runs] = [prefillText, decodeText, runsText].map(Number);

const llama = await getLlama({
    gpu: backend === "vulkan" ? "vulkan" : false,
    build: "never",
    skipDownload: true,
    logLevel: LlamaLogLevel.error,
    maxThreads: availableParallelism(),
    vramPadding: 0,
});
if (backend === "vulkan" && (await llama.getGpuDeviceNames()).length === 0)
    throw new Error("no Vulkan device: name one in GGML_VK_VISIBLE_DEVICES");
const started = performance.now();
const model = await llama.loadModel({modelPath: file, gpuLayers: backend === "vulkan" ? "max" : 0});
const context = await model.createContext({contextSize: prefill + decode + 8, batchSize: 512, sequences: 1, threads: availableParallelism()});
const load_ms = performance.now() - started;
const sequence = context.getSequence();
// The same ids as `mgm bench --gguf`.
const vocabulary = 49152;
const tokens = Array.from({length: prefill}, (_, index) => (index * 7919) % vocabulary);

const rates = [];
for (let run = 0; run <= runs; run++) {
    await sequence.clearHistory();
    const begin = performance.now();
    const generated = sequence.evaluate(tokens, {temperature: 0, yieldEogToken: true});
    await generated.next();
    const first = performance.now();
    let count = 1;
    while (count < decode && !(await generated.next()).done)
        count++;
    const end = performance.now();
    // The first run warms up.
    if (run > 0)
        rates.push({prefill: prefill / (first - begin) * 1000, decode: (count - 1) / (end - first) * 1000});
}
const median = (values) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)];
console.log(JSON.stringify({
    peer: `llama.cpp ${backend}`,
    device: backend === "vulkan" ? (await llama.getGpuDeviceNames()).join(", ") : `${availableParallelism()} threads`,
    prefill_tokens_per_s: median(rates.map((rate) => rate.prefill)),
    decode_tokens_per_s: median(rates.map((rate) => rate.decode)),
    load_ms,
}));
process.exit(0);
