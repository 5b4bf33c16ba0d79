// Tokens per second in Chromium (on SwiftShader), in Firefox (on lavapipe) and natively on both adapters, in turn: tokens.mjs [FILE.gguf].
// Without a file, of Pocket, the bundled model.

import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { bundle, lavapipe, launch, mgm, openPage, root, web } from "../tests/browser.mjs";
import { serve } from "../tests/server.mjs";

const ROUNDS = 3;
const TOKENS = 24;
const QUESTION = "Name three animals that live in the sea, and say of each in one sentence what it eats and how large it grows.";
const SWIFTSHADER = "/usr/lib/chromium/vk_swiftshader_icd.json";

const file = process.argv[2];
if (file && !existsSync(file)) throw new Error(`${file} is missing (\`make smollm2\` downloads a model)`);
if (!existsSync(SWIFTSHADER)) throw new Error(`${SWIFTSHADER} is missing: apt-get install chromium`);
const folder = file ? bundle(file, "stored") : join(root, "models/pocket");

function native(driver) {
  // Temperature 1, because Pocket's likeliest answer is short; the same seed everywhere.
  const question = ["--prompt", QUESTION, "--temperature", "1", "--seed", "1", "--max-new-tokens", String(TOKENS), "--json"];
  const report = JSON.parse(execFileSync(mgm, ["chat", folder, ...question], { env: { ...process.env, ...driver }, stdio: ["ignore", "pipe", "ignore"] }));
  const { prompt_tokens: prompt, timings } = report.turns[0];
  return { prefill: (prompt / timings.prefill_ms) * 1000, decode: timings.decode_tokens_per_s };
}

const server = await serve({ "/": join(web, "tests/page"), "/dist/": join(web, "dist"), "/model/": folder });
const contexts = { chromium: await launch({ inFirefox: false }), firefox: await launch({ inFirefox: true }) };
try {
  const pages = {};
  for (const [name, context] of Object.entries(contexts)) pages[name] = await openPage(context, `${server.url}/`);
  const ask = (page) => page.evaluate(async ({ question, tokens }) => {
    window.model ??= await Mgm.load("/model/");
    const { usage, timings } = await model.chat([{ role: "user", content: question }], { temperature: 1, seed: 1, maxNewTokens: tokens });
    // From the second round on, the prompt is in the KV cache.
    const prefill = usage.cachedTokens === 0 ? (usage.promptTokens / timings.prefillMs) * 1000 : undefined;
    return { prefill, decode: timings.tokensPerSecond };
  }, { question: QUESTION, tokens: TOKENS });
  for (let round = 0; round < ROUNDS; round++) {
    console.log(JSON.stringify({
      chromium: await ask(pages.chromium), "native on SwiftShader": native({ VK_ICD_FILENAMES: SWIFTSHADER, VK_DRIVER_FILES: SWIFTSHADER }),
      firefox: await ask(pages.firefox), "native on lavapipe": native(lavapipe()),
    }));
  }
} finally {
  for (const context of Object.values(contexts)) await context.close();
  await server.close();
}
