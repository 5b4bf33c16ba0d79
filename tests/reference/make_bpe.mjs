// Writes into tests/data/gguf/bpe.json how llama.cpp cuts its texts with every pre-tokenizer that mgm knows, on bpe.gguf.
//
//     python make_bpe.py && npm install node-llama-cpp@3.22.1 && node make_bpe.mjs
import {mkdtempSync, readFileSync, rmSync, writeFileSync} from "node:fs";
import {tmpdir} from "node:os";
import path from "node:path";
import {getLlama, LlamaLogLevel} from "node-llama-cpp";

const NAMES = [
    "", "default", "gpt-2", "phi-2", "jina-es", "jina-de", "mpt", "olmo", "smollm", "starcoder", "refact", "command-r", "codeshell",
    "exaone", "llama-bpe", "llama3", "llama-v3", "falcon3", "smaug-bpe", "qwen2", "deepseek-r1-qwen", "stablelm2", "tekken",
];
const folder = path.join(import.meta.dirname, "../data/gguf");
const file = readFileSync(path.join(folder, "bpe.gguf"));
const {texts} = JSON.parse(readFileSync(path.join(folder, "bpe.json"), "utf8"));

/** The file with another value of tokenizer.ggml.pre; without it, if the name is empty. */
function withPre(name) {
    const key = Buffer.from("tokenizer.ggml.pre");
    const at = file.indexOf(key);
    const value = at + key.length;
    const end = value + 4 + 8 + Number(file.readBigUInt64LE(value + 4));
    if (!name) {
        const head = Buffer.from(file.subarray(0, at - 8));
        head.writeBigUInt64LE(head.readBigUInt64LE(16) - 1n, 16); // one entry less
        return Buffer.concat([head, file.subarray(end)]);
    }
    const length = Buffer.alloc(8);
    length.writeBigUInt64LE(BigInt(name.length));
    return Buffer.concat([file.subarray(0, value + 4), length, Buffer.from(name), file.subarray(end)]);
}

const llama = await getLlama({gpu: false, build: "never", skipDownload: true, logLevel: LlamaLogLevel.error, maxThreads: 1});
const scratch = mkdtempSync(path.join(tmpdir(), "bpe-"));
const ids = {};
for (const name of NAMES) {
    const modelPath = path.join(scratch, `${name || "none"}.gguf`);
    writeFileSync(modelPath, withPre(name));
    const model = await llama.loadModel({modelPath, gpuLayers: 0, vocabOnly: true});
    ids[name] = texts.map((text) => [...model.tokenize(text, false)]);
    await model.dispose();
}
rmSync(scratch, {recursive: true});
writeFileSync(path.join(folder, "bpe.json"), JSON.stringify({texts, ids}) + "\n");
process.exit(0);
