// Tokens per second of SmolLM2-135M (Q4_1) in Chromium and natively, alternately, on the same software adapter (SwiftShader): tokens.mjs
// FILE.gguf

import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { bundle, launch, mgm, openPage, web } from "../tests/browser.mjs";
import { serve } from "../tests/server.mjs";

const ROUNDS = 3;
const TOKENS = 24;
const QUESTION = "Name three animals that live in the sea, and say of each in one sentence what it eats and how large it grows.";
const DRIVER = "/usr/lib/chromium/vk_swiftshader_icd.json";

const file = process.argv[2];
if (!file || !existsSync(file)) throw new Error("usage: tokens.mjs FILE.gguf (`make smollm2` downloads one)");
if (!existsSync(DRIVER)) throw new Error(`${DRIVER} is missing: apt-get install chromium`);
const folder = bundle(file, "stored");

function native() {
  const question = ["--prompt", QUESTION, "--temperature", "0", "--max-new-tokens", String(TOKENS), "--json"];
  const environment = { ...process.env, VK_ICD_FILENAMES: DRIVER };
  const report = JSON.parse(execFileSync(mgm, ["chat", folder, ...question], { env: environment, stdio: ["ignore", "pipe", "ignore"] }));
  const { prompt_tokens: prompt, timings } = report.turns[0];
  return { prefill: (prompt / timings.prefill_ms) * 1000, decode: timings.decode_tokens_per_s };
}

const server = await serve({ "/": join(web, "tests/page"), "/dist/": join(web, "dist"), "/model/": folder });
const context = await launch();
try {
  const page = await openPage(context, `${server.url}/`);
  const chromium = () => page.evaluate(async ({ question, tokens }) => {
    window.model ??= await Mgm.load("/model/");
    const { usage, timings } = await model.chat([{ role: "user", content: question }], { temperature: 0, maxNewTokens: tokens });
    // From the second round on, the prompt is in the KV cache.
    const prefill = usage.cachedTokens === 0 ? (usage.promptTokens / timings.prefillMs) * 1000 : undefined;
    return { prefill, decode: timings.tokensPerSecond };
  }, { question: QUESTION, tokens: TOKENS });
  for (let round = 0; round < ROUNDS; round++) console.log(JSON.stringify({ chromium: await chromium(), native: native() }));
} finally {
  await context.close();
  await server.close();
}
