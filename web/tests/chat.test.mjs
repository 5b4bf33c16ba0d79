// Conversations in a real browser: streaming, stopping, what is kept between turns, errors, lost devices, memory.

import assert from "node:assert/strict";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { bundle, expected, goldens, launch, openPage, web } from "./browser.mjs";
import { serve } from "./server.mjs";

let server, context, page;

before(async () => {
  server = await serve({
    "/": join(web, "tests/page"), "/dist/": join(web, "dist"), "/goldens/": goldens,
    "/text/": bundle("no-image", "f32"), "/llama/": bundle("llama3-8b", "q4"),
  });
  context = await launch();
  page = await openPage(context, `${server.url}/`);
  await page.evaluate(async () => {
    window.phases = new Set();
    window.text = await Mgm.load("/text/", { onProgress: ({ phase }) => phases.add(phase) });
  });
});

after(async () => {
  await context?.close();
  await server?.close();
});

const question = expected("no-image").turns[0].question;
const golden = expected("no-image").turns[0].greedy_ids;

test("an answer streams, and says how it ended", async () => {
  const { deltas, answer } = await page.evaluate(async (question) => {
    const chat = text.chat([{ role: "user", content: question }], { temperature: 0, maxNewTokens: 12 });
    const deltas = [];
    for await (const delta of chat) deltas.push(delta);
    return { deltas, answer: await chat.finished() };
  }, question);
  assert.deepEqual(answer.tokenIds, golden.slice(0, 12));
  const last = deltas.pop();
  assert.equal(deltas.map(({ text }) => text).join("").trim(), answer.text);
  assert.equal(last.finishReason, "length");
  assert.equal(last.usage.completionTokens, 12);
  assert.ok(last.timings.tokensPerSecond > 0 && last.timings.firstTokenMs > 0);
});

test("a seed decides a sampled answer", async () => {
  const texts = await page.evaluate(async (question) => {
    const texts = [];
    for (const seed of [1, 1, 2]) {
      const chat = text.chat([{ role: "user", content: question }], { temperature: 1, maxNewTokens: 12, seed });
      texts.push((await chat.finished()).text);
    }
    return texts;
  }, question);
  assert.equal(texts[0], texts[1]);
  assert.notEqual(texts[0], texts[2]);
});

test("a second turn computes only what is new", async () => {
  const [first, second] = await page.evaluate(async (question) => {
    const messages = [{ role: "user", content: question }];
    const options = { temperature: 0, maxNewTokens: 8 };
    const first = await text.chat(messages, options).finished();
    messages.push({ role: "assistant", content: first.text }, { role: "user", content: "And then?" });
    return [first, await text.chat(messages, options).finished()];
  }, question);
  assert.ok(second.usage.cachedTokens >= first.usage.promptTokens - 1, JSON.stringify(second.usage));
});

test("stopping: by a signal, by leaving the loop, before it begins; the next answer is whole", async () => {
  const result = await page.evaluate(async (question) => {
    const messages = [{ role: "user", content: question }];
    const options = { temperature: 0, maxNewTokens: 400 };
    const aborted = new AbortController();
    let pieces = 0;
    const reasons = [];
    try {
      for await (const _ of text.chat(messages, { ...options, signal: aborted.signal })) if (++pieces === 3) aborted.abort();
    } catch (error) {
      reasons.push(error.name);
    }
    for await (const _ of text.chat(messages, options)) break;
    try {
      await text.chat(messages, { ...options, signal: AbortSignal.abort() }).finished();
    } catch (error) {
      reasons.push(error.name);
    }
    const answer = await text.chat(messages, { temperature: 0, maxNewTokens: 5 }).finished();
    return { pieces, reasons, ids: answer.tokenIds };
  }, question);
  assert.deepEqual(result.reasons, ["AbortError", "AbortError"]);
  assert.ok(result.pieces < 50, `${result.pieces} pieces after the stop`);
  assert.deepEqual(result.ids, golden.slice(0, 5));
});

test("calls wait for each other", async () => {
  const answers = await page.evaluate(async (question) => {
    const options = { temperature: 0, maxNewTokens: 5 };
    const chats = [question, "Hello", question].map((content) => text.chat([{ role: "user", content }], options).finished());
    return (await Promise.all(chats)).map(({ tokenIds }) => tokenIds);
  }, question);
  assert.deepEqual(answers[0], golden.slice(0, 5));
  assert.deepEqual(answers[2], answers[0]);
});

test("wrong calls are typed errors, and do no harm", async () => {
  const codes = await page.evaluate(async () => {
    const code = async (messages, options) => {
      try {
        await text.chat(messages, options).finished();
        return "none";
      } catch (error) {
        return `${error.name} ${error.code}`;
      }
    };
    const user = (content) => [{ role: "user", content }];
    return [
      await code([]),
      await code([{ role: "assistant", content: "Hello" }]),
      await code([...user("a"), ...user("b")]),
      await code(user("word ".repeat(5000))),
      await code(user("a"), { maxNewTokens: 0 }),
      await code(user([{ type: "image", image: new Blob(["no picture"]) }])),
      await code(user([{ type: "image_url", image_url: "/nowhere.png" }])),
      await code(user([{ type: "sound" }])),
      await code(undefined),
      await code("hello"),
      await code([{ role: "user", content: null }]),
      await code(user([null])),
      await code([null]),
      await Mgm.load("http://[bad").then(() => "none", (error) => `${error.name} ${error.code}`),
    ];
  });
  assert.deepEqual(codes, [
    "MgmError invalid-argument", "MgmError invalid-argument", "MgmError invalid-argument", "MgmError prompt-too-long",
    "MgmError invalid-argument", "MgmError image", "MgmError http", "MgmError invalid-argument",
    ...Array(6).fill("MgmError invalid-argument"),
  ]);
});

test("a call that waits for others stops at once", async () => {
  const { before, waited, name, ids } = await page.evaluate(async (question) => {
    const messages = [{ role: "user", content: question }];
    const long = text.chat(messages, { temperature: 0, maxNewTokens: 40 });
    let over = false;
    const end = long.finished().finally(() => (over = true));
    const stop = new AbortController();
    const queued = text.chat(messages, { signal: stop.signal }).finished().catch((error) => error);
    await new Promise((resolve) => setTimeout(resolve, 50));
    stop.abort();
    const { name } = await queued;
    const before = !over;
    await end;
    const after = await text.chat(messages, { temperature: 0, maxNewTokens: 5 }).finished();
    return { before, name, ids: after.tokenIds };
  }, question);
  assert.deepEqual([before, name, ids], [true, "AbortError", golden.slice(0, 5)]);
});

test("pictures come in every shape that pages have them in", async () => {
  const answers = await page.evaluate(async () => {
    const blob = await (await fetch("/goldens/gemma-2b/image0.png")).blob();
    const bitmap = await createImageBitmap(blob);
    const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
    const address = URL.createObjectURL(blob);
    const parts = [
      blob, bitmap, canvas, { type: "image", image: blob }, { type: "image_url", image_url: blob },
      { type: "image_url", image_url: { url: blob } }, { type: "image_url", image_url: { url: address } },
      { type: "image_url", image_url: "/goldens/gemma-2b/image0.png" },
    ];
    const answers = [];
    for (const part of parts) {
      const messages = [{ role: "user", content: [part, "What is it?"] }];
      answers.push((await text.chat(messages, { temperature: 0, maxNewTokens: 4 }).finished()).tokenIds);
    }
    return answers;
  });
  assert.equal(answers.length, 8);
  for (const answer of answers) assert.deepEqual(answer, answers[0]);
});

test("memory is flat over 20 answers", { timeout: 600_000 }, async () => {
  const { first, last } = await page.evaluate(async (question) => {
    const options = { temperature: 1, maxNewTokens: 12 };
    const ask = async (count) => {
      for (let i = 0; i < count; i++) await text.chat([{ role: "user", content: `${question} ${i}` }], options).finished();
      return text.memory();
    };
    return { first: await ask(3), last: await ask(20) };
  }, question);
  assert.equal(last.wasm, first.wasm);
  // Room that is kept for use again grows by a step where a prompt is the first of its length.
  assert.ok(last.gpu - first.gpu <= 64 << 10, `${last.gpu - first.gpu} bytes more on the device`);
});

test("a GPU process that dies costs no answer", { timeout: 300_000 }, async () => {
  await page.evaluate(async (question) => {
    window.dying = text.chat([{ role: "user", content: question }], { temperature: 0, maxNewTokens: 400 });
    // It is well under way.
    let pieces = 0;
    await new Promise((resolve) => {
      (async () => {
        for await (const _ of dying) if (++pieces === 2) resolve();
      })();
    });
  }, question);
  const session = await context.newCDPSession(page);
  await session.send("Browser.crashGpuProcess");
  const ids = await page.evaluate(async () => (await dying.finished()).tokenIds);
  const again = await page.evaluate(
    async (question) => (await text.chat([{ role: "user", content: question }], { temperature: 0, maxNewTokens: 400 }).finished()).tokenIds,
    question,
  );
  assert.deepEqual(ids.slice(0, golden.length), golden);
  assert.deepEqual(ids, again);
  assert.ok(await page.evaluate("phases.has('recover')"), "the device was not lost");
});

test("a recovery that is stopped is made up for by the next call, even without the files", { timeout: 300_000 }, async (t) => {
  // A browser of its own: one whose GPU process dies twice gives no more devices.
  const own = await launch();
  t.after(() => own.close());
  const page = await openPage(own, `${server.url}/`);
  const session = await own.newCDPSession(page);
  await page.evaluate(async () => {
    window.stop = new AbortController();
    window.frail = await Mgm.load("/text/", { onProgress: ({ phase }) => phase === "recover" && stop.abort() });
    await frail.chat([{ role: "user", content: "Hello" }], { maxNewTokens: 2 }).finished();
  });
  await session.send("Browser.crashGpuProcess");
  const result = await page.evaluate(async (question) => {
    const messages = [{ role: "user", content: question }];
    const options = { temperature: 0, maxNewTokens: 5 };
    const stopped = await frail.chat(messages, { ...options, signal: stop.signal }).finished().catch((error) => error.name);
    await cache.delete("/text/");
    const { tokenIds } = await frail.chat(messages, options).finished();
    const memory = await frail.memory();
    frail.dispose();
    return { stopped, tokenIds, gpu: memory.gpu };
  }, question);
  assert.equal(result.stopped, "AbortError");
  assert.deepEqual(result.tokenIds, golden.slice(0, 5));
  assert.ok(result.gpu > 0);
});

test("a model that is disposed of says so", async () => {
  const codes = await page.evaluate(async () => {
    const mgm = await Mgm.load("/text/");
    const chat = mgm.chat([{ role: "user", content: "Hello" }], { maxNewTokens: 400 });
    chat.finished().catch(() => undefined);
    mgm.dispose();
    const codes = [];
    for (const call of [() => chat.finished(), () => mgm.chat([{ role: "user", content: "a" }]).finished(), () => mgm.memory()]) {
      try {
        await call();
      } catch (error) {
        codes.push(error.code);
      }
    }
    return codes;
  });
  assert.deepEqual(codes, ["disposed", "disposed", "disposed"]);
});
