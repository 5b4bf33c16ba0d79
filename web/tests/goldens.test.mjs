// The golden checkpoints generate the greedy ids of the reference implementation.
// MGM_CASES selects cases by name, separated by commas.

import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { bundle, expected, goldens, launch, openPage, web } from "./browser.mjs";
import { serve } from "./server.mjs";

const known = readdirSync(goldens);
// image-generation.test.mjs compares image models with the native binary.
const cases = process.env.MGM_CASES?.split(",") ?? known.filter((name) => expected(name).turns);
let server, context, page;

before(async () => {
  const models = Object.fromEntries(cases.map((name) => [`/model/${name}/`, bundle(name, "f32")]));
  server = await serve({ "/": join(web, "tests/page"), "/dist/": join(web, "dist"), "/goldens/": goldens, ...models });
  context = await launch();
  page = await openPage(context, `${server.url}/`);
});

after(async () => {
  await context?.close();
  await server?.close();
});

test("every kernel passes its self-check", { timeout: 300_000 }, async () => {
  const checked = await page.evaluate(() => Mgm.selfCheck());
  assert.ok(checked.length > 30);
  assert.deepEqual(checked.filter(({ failure }) => failure).map(({ failure }) => failure), []);
});

for (const name of cases) {
  test(name, { timeout: 900_000 }, async (t) => {
    assert.ok(known.includes(name), `there is no golden case ${name}`);
    const { turns, images } = expected(name);
    const answers = await page.evaluate(
      async ({ name, questions, images }) => {
        const mgm = await Mgm.load(`/model/${name}/`);
        const messages = [];
        const answers = [];
        for (const [index, text] of questions.entries()) {
          const parts = index > 0 ? [] : images.map((image) => ({ type: "image_url", image_url: `/goldens/${name}/${image}` }));
          messages.push({ role: "user", content: [...parts, { type: "text", text }] });
          const answer = await mgm.chat(messages, { temperature: 0, maxNewTokens: 24 });
          messages.push({ role: "assistant", content: answer.text });
          answers.push(answer);
        }
        mgm.dispose();
        return answers;
      },
      { name, questions: turns.map(({ question }) => question), images },
    );
    for (const [index, answer] of answers.entries()) {
      const golden = turns[index].greedy_ids;
      // The reference continues after an end-of-sequence token; an answer does not.
      assert.deepEqual(answer.tokenIds, golden.slice(0, answer.tokenIds.length), `turn ${index}`);
      assert.ok(answer.finishReason === "stop" || answer.tokenIds.length === golden.length, `turn ${index}`);
      assert.equal(answer.usage.promptTokens, turns[index].n_embeds, `turn ${index}`);
    }
    const { visionMs, prefillMs, tokensPerSecond } = answers[0].timings;
    t.diagnostic(`vision ${visionMs.toFixed(0)} ms, prefill ${prefillMs.toFixed(0)} ms, ${tokensPerSecond.toFixed(1)} tokens/s`);
  });
}
