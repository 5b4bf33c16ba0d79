// Prefill and decode rates of llama.cpp on a GGUF file, as prebuilt in node-llama-cpp.
// node llama_cpp.mjs FILE cpu|vulkan PREFILL DECODE  ->  one JSON object, of the second run: the first warms up
import {availableParallelism} from "node:os";
import {getLlama, LlamaLogLevel} from "node-llama-cpp";

const [file, backend, ...counts] = process.argv.slice(2);
const [prefill, decode] = counts.map(Number);

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
const model = await llama.loadModel({modelPath: file, gpuLayers: backend === "vulkan" ? "max" : 0});
const context = await model.createContext({contextSize: prefill + decode + 8, batchSize: 512, sequences: 1, threads: availableParallelism()});
const sequence = context.getSequence();
// The same ids as `mgm bench --gguf`.
const vocabulary = model.fileInfo.metadata.tokenizer.ggml.tokens.length;
const tokens = Array.from({length: prefill}, (_, index) => (index * 7919) % vocabulary);

let rates;
for (let run = 0; run < 2; run++) {
    await sequence.clearHistory();
    const begin = performance.now();
    const generated = sequence.evaluate(tokens, {temperature: 0, yieldEogToken: true});
    await generated.next();
    const first = performance.now();
    let count = 1;
    while (count < decode && !(await generated.next()).done)
        count++;
    const end = performance.now();
    rates = {
        prefill_tokens_per_s: prefill / (first - begin) * 1000,
        decode_tokens_per_s: (count - 1) / (end - first) * 1000,
    };
}
console.log(JSON.stringify({
    device: backend === "vulkan" ? (await llama.getGpuDeviceNames()).join(", ") : `${availableParallelism()} threads`,
    ...rates,
}));
process.exit(0);
