// Conversations in a real browser: streaming, aborting, the prefix cache, errors, lost devices, memory.

import assert from "node:assert/strict";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { bundle, crashGpu, expected, goldens, launch, openPage, prepareCrash, web } from "./browser.mjs";
import { serve } from "./server.mjs";

let server, context, page;

before(async () => {
  server = await serve({
    "/": join(web, "tests/page"), "/dist/": join(web, "dist"), "/goldens/": goldens,
    "/text/": bundle("no-image", "f32"), "/llama/": bundle("llama3-8b", "q4"),
  });
  context = await launch();
  page = await openPage(context, `${server.url}/`);
  await prepareCrash(page);
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

test("an image of another site that sends no CORS headers is an error with a code", async () => {
  const other = await serve({ "/": join(goldens, "gemma-2b") });
  const { name, code, message } = await page.evaluate(async (url) => {
    const image = new Image();
    image.src = url;
    await image.decode();
    return text.chat([{ role: "user", content: [image, "What is this?"] }]).catch(({ name, code, message }) => ({ name, code, message }));
  }, `${other.url}/image0.png`);
  await other.close();
  assert.deepEqual([name, code], ["MgmError", "cors"]);
  assert.match(message, /crossorigin/);
});

test("support tells a browser without an adapter from one without WebGPU, and large memories are not bounded", async () => {
  const { support, thrown, sizes } = await page.evaluate(async () => {
    const request = navigator.gpu.requestAdapter;
    navigator.gpu.requestAdapter = async () => null;
    const support = await Mgm.support();
    const thrown = await Mgm.load("/text/").catch(({ name, code }) => `${name} ${code}`);
    navigator.gpu.requestAdapter = request;
    // MGM-7B with its towers has 7.3e9 parameters.
    const sizes = [];
    for (const memory of [2, 4, 8]) {
      Object.defineProperty(navigator, "deviceMemory", { configurable: true, value: memory });
      const { supported, precisions, maxWeightBytes } = await Mgm.support({ weightBytes: 2 * 7.3e9 });
      sizes.push([memory, supported, precisions.length, maxWeightBytes]);
    }
    delete navigator.deviceMemory;
    return { support, thrown, sizes };
  });
  assert.deepEqual([support.supported, support.code, thrown], [false, "no-adapter", "MgmError no-adapter"]);
  assert.deepEqual(sizes, [[2, false, 0, 2 ** 30], [4, false, 0, 2 ** 31], [8, true, 4, undefined]]);
});

test("an answer streams as typed deltas and ends with the whole answer", async () => {
  const { deltas, answer } = await page.evaluate(async (question) => {
    const chat = text.chat([{ role: "user", content: question }], { temperature: 0, maxNewTokens: 12 });
    const deltas = [];
    for await (const delta of chat) deltas.push(delta);
    return { deltas, answer: await chat };
  }, question);
  assert.deepEqual(answer.tokenIds, golden.slice(0, 12));
  const last = deltas.pop();
  assert.ok(deltas.every(({ type }) => type === "text"));
  assert.equal(deltas.map(({ text }) => text).join("").trim(), answer.text);
  assert.deepEqual(last, { type: "done", answer });
  assert.equal(answer.finishReason, "length");
  assert.equal(answer.usage.completionTokens, 12);
  assert.ok(answer.timings.tokensPerSecond > 0 && answer.timings.firstTokenMs > 0);
});

test("a stop string ends the answer before it, also where it spans two deltas", async () => {
  const { whole, stop, cut, streamed, none } = await page.evaluate(async (question) => {
    const messages = [{ role: "user", content: question }];
    const options = { temperature: 0, maxTokens: 12 };
    const whole = await text.chat(messages, options);
    const stop = whole.text.slice(3, 9);
    const chat = text.chat(messages, { ...options, stop: ["no such text", stop] });
    let streamed = "";
    for await (const delta of chat) if (delta.type === "text") streamed += delta.text;
    const none = await text.chat(messages, { ...options, stop: `${whole.text.slice(-1)} and more` });
    return { whole, stop, cut: await chat, streamed, none };
  }, question);
  assert.equal(stop.length, 6);
  assert.equal(cut.text, whole.text.slice(0, whole.text.indexOf(stop)).trim());
  assert.equal(streamed.trim(), cut.text);
  assert.deepEqual([cut.finishReason, none.text, none.finishReason], ["stop", whole.text, "length"]);
});

test("decoding controls change an answer as they say", async () => {
  const result = await page.evaluate(async (question) => {
    const messages = [{ role: "user", content: question }];
    const options = { temperature: 0, maxTokens: 8 };
    const ask = (more) => text.chat(messages, { ...options, ...more });
    const whole = await ask({});
    const [first, , third] = whole.tokenIds;
    const neutral = await ask({ minP: 0, repetitionPenalty: 1, presence_penalty: 0, frequencyPenalty: 0, logitBias: {}, n: 1, minTokens: 0 });
    const forbidden = await ask({ logit_bias: { [first]: -100 } });
    const forced = await ask({ logitBias: { [third]: 100 }, maxTokens: 3 });
    const penalised = await ask({ logitBias: { [third]: 20 }, presencePenalty: 2, frequencyPenalty: 2, repetition_penalty: 2, maxTokens: 8 });
    const ended = await ask({ stopTokenIds: [third] });
    const late = await ask({ stopTokenIds: [third], minTokens: 5 });
    const single = await ask({ temperature: 1, minP: 1 });
    const chat = ask({ temperature: 1, n: 2, seed: 3, topLogprobs: 2 });
    const deltas = [];
    for await (const delta of chat) if (delta.type === "text") deltas.push(delta);
    const alone = await ask({ temperature: 1, seed: 3 });
    return { whole, first, third, neutral, forbidden, forced, penalised, ended, late, single, several: await chat, deltas, alone };
  }, question);
  const { whole, first, third, neutral, forbidden, forced, penalised, ended, late, single, several, deltas, alone } = result;
  assert.deepEqual(neutral.tokenIds, whole.tokenIds);
  assert.ok(!forbidden.tokenIds.includes(first));
  assert.deepEqual(forced.tokenIds, [third, third, third]);
  assert.ok(new Set(penalised.tokenIds).size > 1);
  const until = whole.tokenIds.indexOf(third) + 1;
  assert.deepEqual([ended.tokenIds, ended.finishReason, ended.stopReason], [whole.tokenIds.slice(0, until), "stop", third]);
  assert.ok(late.tokenIds.length >= 5 && !late.tokenIds.slice(0, 5).includes(third));
  // Only tokens as likely as the best are left.
  assert.deepEqual(single.tokenIds, whole.tokenIds);
  assert.equal(several.choices.length, 2);
  assert.deepEqual(several.choices[0].tokenIds, alone.tokenIds);
  assert.notDeepEqual(several.choices[1].tokenIds, alone.tokenIds);
  for (const [index, { text, tokenIds, logprobs }] of several.choices.entries()) {
    const own = deltas.filter(({ choice }) => choice === index);
    assert.equal(own.map(({ text }) => text).join("").trim(), text);
    assert.deepEqual(logprobs.map(({ id }) => id), tokenIds);
    assert.ok(logprobs.every(({ topLogprobs, logprob }) => topLogprobs.length === 2 && topLogprobs[0].logprob >= logprob && logprob <= 0));
    const streamed = own.flatMap(({ logprobs }) => logprobs ?? []);
    assert.deepEqual(streamed, logprobs.slice(0, streamed.length));
  }
});

test("a failure that nobody waits for is an unhandled rejection; a stream can be read once", async () => {
  const { unhandled, again } = await page.evaluate(async () => {
    const unhandled = [];
    const listener = (event) => {
      event.preventDefault();
      unhandled.push(event.reason.code);
    };
    window.addEventListener("unhandledrejection", listener);
    // Nobody waits for the first and the second is aborted by its caller; the others are waited for.
    text.chat([]);
    text.chat([{ role: "user", content: "Hello" }], { signal: AbortSignal.abort() });
    await text.chat([]).catch(() => undefined);
    try {
      for await (const _ of text.chat([]));
    } catch {
      // Thrown by the loop.
    }
    const chat = text.chat([{ role: "user", content: "Hello" }], { max_tokens: 1, max_completion_tokens: 1 });
    for await (const _ of chat);
    const again = await (async () => {
      for await (const _ of chat);
    })().catch((error) => error.code);
    await new Promise((resolve) => setTimeout(resolve, 100));
    window.removeEventListener("unhandledrejection", listener);
    return { unhandled, again };
  });
  assert.deepEqual(unhandled, ["invalid-argument"]);
  assert.equal(again, "invalid-argument");
});

test("a seed determines a sampled answer", async () => {
  const texts = await page.evaluate(async (question) => {
    const texts = [];
    for (const seed of [1, 1, 2]) {
      const chat = text.chat([{ role: "user", content: question }], { temperature: 1, maxNewTokens: 12, seed });
      texts.push((await chat).text);
    }
    return texts;
  }, question);
  assert.equal(texts[0], texts[1]);
  assert.notEqual(texts[0], texts[2]);
});

test("a second turn computes only its new tokens", async () => {
  const [first, second] = await page.evaluate(async (question) => {
    const messages = [{ role: "user", content: question }];
    const options = { temperature: 0, maxNewTokens: 8 };
    const first = await text.chat(messages, options);
    messages.push({ role: "assistant", content: first.text }, { role: "user", content: "And then?" });
    return [first, await text.chat(messages, options)];
  }, question);
  assert.ok(second.usage.cachedTokens >= first.usage.promptTokens - 1, JSON.stringify(second.usage));
});

test("an answer stops by a signal, by leaving the loop, or before it starts; the next one is complete", async () => {
  const result = await page.evaluate(async (question) => {
    const messages = [{ role: "user", content: question }];
    const options = { temperature: 0, maxNewTokens: 400 };
    const aborted = new AbortController();
    let count = 0;
    const reasons = [];
    try {
      for await (const _ of text.chat(messages, { ...options, signal: aborted.signal })) if (++count === 3) aborted.abort();
    } catch (error) {
      reasons.push(error.name);
    }
    for await (const _ of text.chat(messages, options)) break;
    try {
      await text.chat(messages, { ...options, signal: AbortSignal.abort() });
    } catch (error) {
      reasons.push(error.name);
    }
    const answer = await text.chat(messages, { temperature: 0, maxNewTokens: 5 });
    return { count, reasons, ids: answer.tokenIds };
  }, question);
  assert.deepEqual(result.reasons, ["AbortError", "AbortError"]);
  assert.ok(result.count < 50, `${result.count} deltas in spite of the abort`);
  assert.deepEqual(result.ids, golden.slice(0, 5));
});

test("calls run one after the other", async () => {
  const answers = await page.evaluate(async (question) => {
    const options = { temperature: 0, maxNewTokens: 5 };
    const chats = [question, "Hello", question].map((content) => text.chat([{ role: "user", content }], options));
    return (await Promise.all(chats)).map(({ tokenIds }) => tokenIds);
  }, question);
  assert.deepEqual(answers[0], golden.slice(0, 5));
  assert.deepEqual(answers[2], answers[0]);
});

test("wrong calls fail with typed errors", async () => {
  const codes = await page.evaluate(async () => {
    const code = async (messages, options) => {
      try {
        await text.chat(messages, options);
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
      await code(user([{ type: "image", image: new Blob(["not an image"]) }])),
      await code(user([{ type: "image_url", image_url: "/nowhere.png" }])),
      await code(user([{ type: "sound" }])),
      await code(undefined),
      await code("hello"),
      await code([{ role: "user", content: null }]),
      await code(user([null])),
      await code([null]),
      await code(user("a"), { maxNewTokens: 5, maxTokens: 6 }),
      await code(user("a"), { max_completion_tokens: 5, maxNewTokens: 6 }),
      await code(user("a"), { top_p: 0.5, topP: 0.6 }),
      await code(user("a"), { temprature: 0 }),
      await code(user("a"), { stop: ["x", ""] }),
      await code(user("a"), { image: { mode: "sometimes" } }),
      await code(user("a"), { repetitionPenalty: 0 }),
      await code(user("a"), { minP: 2 }),
      await code(user("a"), { logitBias: { 99999999: 1 } }),
      await code(user("a"), { logitBias: { word: 1 } }),
      await code(user("a"), { topLogprobs: 21 }),
      await code(user("a"), { n: 0 }),
      await code(user("a"), { presencePenalty: NaN }),
      await code(user("a"), { minTokens: 9, maxTokens: 8 }),
      await Mgm.load("http://[bad").then(() => "none", (error) => `${error.name} ${error.code}`),
    ];
  });
  assert.deepEqual(codes, [
    "MgmError invalid-argument", "MgmError invalid-argument", "MgmError invalid-argument", "MgmError prompt-too-long",
    "MgmError invalid-argument", "MgmError image", "MgmError http", "MgmError invalid-argument",
    ...Array(20).fill("MgmError invalid-argument"),
  ]);
});

test("a waiting call aborts at once", async () => {
  const { before, waited, name, ids } = await page.evaluate(async (question) => {
    const messages = [{ role: "user", content: question }];
    const long = text.chat(messages, { temperature: 0, maxNewTokens: 40 });
    let over = false;
    const end = long.finally(() => (over = true));
    const stop = new AbortController();
    const queued = text.chat(messages, { signal: stop.signal }).catch((error) => error);
    await new Promise((resolve) => setTimeout(resolve, 50));
    stop.abort();
    const { name } = await queued;
    const before = !over;
    await end;
    const after = await text.chat(messages, { temperature: 0, maxNewTokens: 5 });
    return { before, name, ids: after.tokenIds };
  }, question);
  assert.deepEqual([before, name, ids], [true, "AbortError", golden.slice(0, 5)]);
});

test("images are accepted in every form that pages have", async () => {
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
      answers.push((await text.chat(messages, { temperature: 0, maxNewTokens: 4 })).tokenIds);
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
      for (let i = 0; i < count; i++) await text.chat([{ role: "user", content: `${question} ${i}` }], options);
      return text.memory();
    };
    return { first: await ask(3), last: await ask(20) };
  }, question);
  assert.equal(last.wasm, first.wasm);
  // The buffer pool grows by a step with the first prompt of a new length.
  assert.ok(last.gpu - first.gpu <= 64 << 10, `${last.gpu - first.gpu} bytes more on the device`);
});

test("an answer survives the death of the GPU process", { timeout: 300_000 }, async () => {
  await page.evaluate(async (question) => {
    window.dying = text.chat([{ role: "user", content: question }], { temperature: 0, maxNewTokens: 400 });
    // Wait for its second delta.
    let count = 0;
    await new Promise((resolve) => {
      (async () => {
        for await (const _ of dying) if (++count === 2) resolve();
      })();
    });
  }, question);
  await crashGpu(page);
  const ids = await page.evaluate(async () => (await dying).tokenIds);
  const again = await page.evaluate(
    async (question) => (await text.chat([{ role: "user", content: question }], { temperature: 0, maxNewTokens: 400 })).tokenIds,
    question,
  );
  assert.deepEqual(ids.slice(0, golden.length), golden);
  assert.deepEqual(ids, again);
  assert.ok(await page.evaluate("phases.has('recover')"), "the device was not lost");
});

test("after an aborted recovery the next call recovers, even if the files were deleted", { timeout: 300_000 }, async (t) => {
  // A browser of its own: after its GPU process died twice, a browser provides no more devices.
  const own = await launch();
  t.after(() => own.close());
  const page = await openPage(own, `${server.url}/`);
  await prepareCrash(page);
  await page.evaluate(async () => {
    window.stop = new AbortController();
    window.frail = await Mgm.load("/text/", { onProgress: ({ phase }) => phase === "recover" && stop.abort() });
    await frail.chat([{ role: "user", content: "Hello" }], { maxNewTokens: 2 });
  });
  await crashGpu(page);
  const result = await page.evaluate(async (question) => {
    const messages = [{ role: "user", content: question }];
    const options = { temperature: 0, maxNewTokens: 5 };
    const stopped = await frail.chat(messages, { ...options, signal: stop.signal }).catch((error) => error.name);
    await cache.delete("/text/");
    const { tokenIds } = await frail.chat(messages, options);
    const memory = await frail.memory();
    frail.dispose();
    return { stopped, tokenIds, gpu: memory.gpu };
  }, question);
  assert.equal(result.stopped, "AbortError");
  assert.deepEqual(result.tokenIds, golden.slice(0, 5));
  assert.ok(result.gpu > 0);
});

test("a disposed model fails with a typed error", async () => {
  const codes = await page.evaluate(async () => {
    const mgm = await Mgm.load("/text/");
    const chat = mgm.chat([{ role: "user", content: "Hello" }], { maxNewTokens: 400 });
    chat.catch(() => undefined);
    await mgm[Symbol.asyncDispose]();
    const codes = [];
    for (const call of [() => chat, () => mgm.chat([{ role: "user", content: "a" }]), () => mgm.memory()]) {
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
