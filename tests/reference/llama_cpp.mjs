// Makes tests/data/gguf/smollm2.json: what llama.cpp's CPU build computes with SmolLM2-135M-Instruct.Q4_1.gguf.
//
//     npm install node-llama-cpp@3.22.1 && node llama_cpp.mjs FILE > smollm2.json
//
// For each prompt its ids, 48 greedy ids, and the log-probabilities of the 50 likeliest tokens after the prompt.
import {getLlama, LlamaLogLevel} from "node-llama-cpp";

const PROMPTS = [
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "List three prime numbers between 10 and 30, and say why 21 isn't one.",
];

const llama = await getLlama({gpu: false, build: "never", skipDownload: true, logLevel: LlamaLogLevel.error, maxThreads: 2});
const model = await llama.loadModel({modelPath: process.argv[2], gpuLayers: 0});
const context = await model.createContext({contextSize: 512, sequences: 1, threads: 2, batchSize: 512});
const sequence = context.getSequence();
const cases = [];
for (const prompt of PROMPTS) {
    const text = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n" +
        `<|im_start|>user\n${prompt}<|im_end|>\n<|im_start|>assistant\n`;
    const ids = model.tokenize(text, true);
    await sequence.clearHistory();
    const greedy = [];
    let likeliest;
    const answers = sequence.evaluateWithMetadata(ids, {probabilities: true}, {temperature: 0, yieldEogToken: true});
    for await (const {token, probabilities} of answers) {
        likeliest ??= [...probabilities].slice(0, 50).map(([id, probability]) => [id, Math.log(probability)]);
        greedy.push(token);
        if (greedy.length == 48 || model.isEogToken(token))
            break;
    }
    cases.push({prompt, ids, greedy, likeliest});
}
console.log(JSON.stringify(cases, null, 1));
process.exit(0);
