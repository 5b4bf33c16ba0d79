// OpenAI's chat completions on a loaded model: requests, responses, streams, errors.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { bundle, expected, goldens, launch, openPage, web } from "./browser.mjs";
import { join } from "node:path";
import { serve } from "./server.mjs";

let server, context, page;
const { question } = expected("no-image").turns[0];

before(async () => {
  server = await serve({ "/": join(web, "tests/page"), "/dist/": join(web, "dist"), "/goldens/": goldens, "/text/": bundle("no-image", "f32") });
  context = await launch();
  page = await openPage(context, `${server.url}/`);
  await page.evaluate(async () => {
    window.text = await Mgm.load("/text/");
    window.create = (body, options) => text.openai.chat.completions.create(body, options);
  });
});

after(async () => {
  await context?.close();
  await server?.close();
});

test("a response has OpenAI's shape and the text of chat()", async () => {
  const { response, answer, image } = await page.evaluate(async (question) => {
    const messages = [{ role: "system", content: "Be brief." }, { role: "user", content: question }];
    const response = await create({ messages, temperature: 0, max_tokens: 12, model: "local", user: "someone", n: 1, presence_penalty: 0 });
    const answer = await text.chat(messages, { temperature: 0, maxTokens: 12 });
    const parts = [{ type: "image_url", image_url: { url: "/goldens/gemma-2b/image0.png", detail: "low" } }, { type: "text", text: "What is it?" }];
    const image = await create({ messages: [{ role: "user", content: parts }], temperature: 0, max_completion_tokens: 2, max_tokens: 12 });
    return { response, answer, image };
  }, question);
  const { id, created, ...rest } = response;
  assert.match(id, /^chatcmpl-/);
  assert.ok(Math.abs(created - Date.now() / 1000) < 600 && Number.isInteger(created));
  const { promptTokens } = answer.usage;
  assert.deepEqual(rest, {
    object: "chat.completion", model: "local",
    choices: [{ index: 0, message: { role: "assistant", content: answer.text, refusal: null }, logprobs: null, finish_reason: "length" }],
    usage: { prompt_tokens: promptTokens, completion_tokens: 12, total_tokens: promptTokens + 12, prompt_tokens_details: response.usage.prompt_tokens_details },
  });
  assert.ok(response.usage.prompt_tokens_details.cached_tokens < promptTokens);
  assert.deepEqual([image.usage.completion_tokens, image.model], [2, (await page.evaluate("text.info.name"))]);
});

test("a stream has OpenAI's chunks, and usage if it is asked for", async () => {
  const { chunks, plain, whole, count } = await page.evaluate(async (question) => {
    const body = { messages: [{ role: "user", content: question }], temperature: 0, max_tokens: 12 };
    const collect = async (stream) => {
      const chunks = [];
      for await (const chunk of stream) chunks.push(chunk);
      return chunks;
    };
    const chunks = await collect(await create({ ...body, stream: true, stream_options: { include_usage: true } }));
    const plain = await collect(await create({ ...body, stream: true }));
    const whole = await create(body);
    // The controller stops a stream.
    const stream = await create({ ...body, stream: true, max_tokens: 400 });
    let count = 0;
    try {
      for await (const _ of stream) if (++count === 3) stream.controller.abort();
    } catch (error) {
      if (error.name !== "AbortError") throw error;
    }
    return { chunks, plain, whole, count };
  }, question);
  const content = (chunks) => chunks.map(({ choices }) => choices[0]?.delta.content ?? "").join("");
  assert.equal(content(chunks).trim(), whole.choices[0].message.content);
  assert.equal(content(plain), content(chunks));
  assert.deepEqual(chunks[0].choices, [{ index: 0, delta: { role: "assistant", content: "" }, logprobs: null, finish_reason: null }]);
  assert.deepEqual(chunks.at(-2).choices, [{ index: 0, delta: {}, logprobs: null, finish_reason: "length" }]);
  assert.deepEqual([chunks.at(-1).choices, chunks.at(-1).usage.completion_tokens, chunks[0].usage], [[], 12, null]);
  assert.equal(new Set(chunks.map(({ id, object, created, model }) => [id, object, created, model].join())).size, 1);
  assert.equal(chunks[0].object, "chat.completion.chunk");
  assert.ok(plain.every((chunk) => !("usage" in chunk)) && plain.at(-1).choices[0].finish_reason === "length");
  assert.ok(count < 50, `${count} chunks in spite of the abort`);
});

test("stop strings, seeds and neighbouring messages of one role", async () => {
  const { whole, cut, seeds, joined } = await page.evaluate(async (question) => {
    const user = (content) => ({ role: "user", content });
    const ask = async (body) => (await create({ messages: [user(question)], max_tokens: 12, ...body })).choices[0];
    const whole = await ask({ temperature: 0 });
    const cut = await ask({ temperature: 0, stop: [whole.message.content.slice(3, 9)] });
    const seeds = [];
    for (const seed of [1, 1, 2]) seeds.push((await ask({ temperature: 1, seed })).message.content);
    const joined = [];
    for (const messages of [[user("a"), user("b")], [user("a\n\nb")]]) joined.push((await ask({ temperature: 0, messages })).message.content);
    return { whole, cut, seeds, joined };
  }, question);
  assert.deepEqual([cut.finish_reason, cut.message.content], ["stop", whole.message.content.slice(0, 3).trim()]);
  assert.ok(seeds[0] === seeds[1] && seeds[0] !== seeds[2]);
  assert.equal(joined[0], joined[1]);
});

test("several answers with log-probabilities, whole and streamed", async () => {
  const { whole, chunks, plain } = await page.evaluate(async (question) => {
    const body = { messages: [{ role: "user", content: question }], temperature: 1, seed: 5, max_tokens: 6, n: 2, logprobs: true, top_logprobs: 3 };
    const whole = await create(body);
    const chunks = [];
    for await (const chunk of await create({ ...body, stream: true, stream_options: { include_usage: true } })) chunks.push(chunk);
    const plain = await create({ ...body, n: 1, logprobs: false, top_logprobs: null });
    return { whole, chunks, plain };
  }, question);
  assert.deepEqual(whole.choices.map(({ index }) => index), [0, 1]);
  assert.equal(whole.choices[0].message.content, plain.choices[0].message.content);
  assert.equal(plain.choices[0].logprobs, null);
  assert.equal(whole.usage.completion_tokens, whole.choices.reduce((sum, { logprobs }) => sum + logprobs.content.length, 0));
  for (const { index, message, logprobs, finish_reason } of whole.choices) {
    const own = chunks.flatMap(({ choices }) => choices.filter((choice) => choice.index === index));
    assert.equal(own.map(({ delta }) => delta.content ?? "").join("").trim(), message.content);
    assert.deepEqual(own[0].delta, { role: "assistant", content: "" });
    assert.equal(own.at(-1).finish_reason, finish_reason);
    const streamed = own.flatMap(({ logprobs }) => logprobs?.content ?? []);
    assert.deepEqual(streamed, logprobs.content.slice(0, streamed.length));
    for (const { logprob, bytes, top_logprobs } of logprobs.content) {
      assert.ok(logprob <= 0 && (bytes === null || Array.isArray(bytes)) && top_logprobs.length === 3);
      assert.ok(top_logprobs[0].logprob >= top_logprobs[1].logprob && top_logprobs[0].logprob >= logprob);
    }
  }
  assert.deepEqual([chunks.at(-1).choices, chunks.at(-1).usage.completion_tokens], [[], whole.usage.completion_tokens]);
});

test("what is not supported fails with a typed error that names it", async () => {
  const errors = await page.evaluate(async () => {
    const messages = [{ role: "user", content: "a" }];
    const bodies = [
      { messages, tools: [{}] }, { messages, logprobs: 2 }, { messages, best_of: 2 }, { messages, suffix: "a" }, { messages, functions: [] },
      { messages, response_format: { type: "json_object" } }, { messages, audio: {} }, { messages, modalities: ["text", "audio"] },
      { messages: [{ role: "tool", content: "a" }] }, { messages: [{ role: "user", content: [{ type: "input_audio" }] }] },
      { messages: [{ role: "user", content: null }] }, {}, { messages, max_tokens: 0 }, { messages, stop: "" }, { messages, n: 0 },
      { messages, top_logprobs: 2 }, { messages, logprobs: true, top_logprobs: 21 }, { messages, frequency_penalty: 3 },
      { messages, logit_bias: { 99999999: 1 } },
    ];
    const errors = [];
    for (const body of bodies) errors.push(await create(body).then(() => "none", (error) => `${error.code}: ${error.message}`));
    const stream = await create({ messages: [], stream: true });
    errors.push(await (async () => {
      for await (const _ of stream);
    })().then(() => "none", (error) => `${error.code}: ${error.message}`));
    // Null is the same as nothing.
    await create({ messages, max_tokens: 1, tools: null, stop: null, temperature: null, stream: null });
    return errors;
  });
  const unsupported = ["tools", "logprobs", "best_of", "suffix", "functions", "response_format", "audio", "modalities"];
  for (const [index, name] of unsupported.entries()) assert.match(errors[index], new RegExp(`^unsupported: .* ${name} is not supported`));
  assert.match(errors[8], /^unsupported: .*"tool"/);
  assert.match(errors[9], /^unsupported: .*"input_audio"/);
  for (const error of errors.slice(10)) assert.match(error, /^invalid-argument: /);
});
