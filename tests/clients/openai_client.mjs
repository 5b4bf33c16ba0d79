// OpenAI's Node.js client against `mgm serve` with Pocket. Usage: openai_client.mjs BASE_URL KEY IMAGE
import assert from "node:assert/strict";
import { createReadStream, readFileSync } from "node:fs";
import OpenAI from "openai";
import { VERSION } from "openai/version";

const [baseURL, apiKey, image] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey });
const ask = { model: "pocket", messages: [{ role: "user", content: "What is your name?" }], temperature: 0 };

const whole = await client.chat.completions.create(ask);
const text = whole.choices[0].message.content;
assert.equal(text, "My name is Pocket.");
let streamed = "";
let usage;
for await (const chunk of await client.chat.completions.create({ ...ask, stream: true, stream_options: { include_usage: true } })) {
  streamed += chunk.choices[0]?.delta.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(streamed, text);
assert.deepEqual(usage.completion_tokens, whole.usage.completion_tokens);
// The client's own way to join a stream.
assert.equal((await client.chat.completions.stream(ask).finalChatCompletion()).choices[0].message.content, text);

const response = await client.responses.create({ model: "pocket", input: "What is your name?", temperature: 0 });
assert.equal(response.output_text, text);
// The client checks the order of the events.
const events = client.responses.stream({ model: "pocket", input: "What is your name?", temperature: 0 });
assert.equal((await events.finalResponse()).output_text, text);

const url = `data:image/png;base64,${readFileSync(image).toString("base64")}`;
const content = [
  { type: "image_url", image_url: { url } },
  { type: "text", text: "What animal is this?" },
];
const seen = await client.chat.completions.create({ ...ask, messages: [{ role: "user", content }] });
assert.match(seen.choices[0].message.content, /shark/);
const draw = { model: "pocket-sdxl", prompt: "a red car", size: "64x64", steps: 2, seed: 7 };
const drawn = (await client.images.generate(draw)).data[0].b64_json;
const types = [];
for await (const event of await client.images.generate({ ...draw, stream: true, partial_images: 1 })) {
  types.push(event.type);
  if (event.type === "image_generation.completed") assert.equal(event.b64_json, drawn);
}
assert.deepEqual(types, ["image_generation.partial_image", "image_generation.completed"]);
const edited = await client.images.edit({ ...draw, image: createReadStream(image) });
assert.ok(Buffer.from(edited.data[0].b64_json, "base64").subarray(1, 4).equals(Buffer.from("PNG")));

const failure = (changes, options) =>
  client.chat.completions.create({ ...ask, ...changes }, { maxRetries: 0, ...options }).then(
    () => assert.fail("no error"),
    (error) => error,
  );
const invalid = await failure({ temperature: 3 });
assert.ok(invalid instanceof OpenAI.BadRequestError && invalid.param === "temperature", invalid);
assert.ok((await failure({ model: "other" })) instanceof OpenAI.NotFoundError);
const other = new OpenAI({ baseURL, apiKey: "wrong" });
await assert.rejects(other.models.list(), OpenAI.AuthenticationError);
// Not tried again: the server forbids it.
const late = await failure({}, { maxRetries: 3, headers: { "x-mgm-timeout-ms": "0" } });
assert.equal(late.status, 504);

// A stream that is given up frees its place.
const stream = await client.chat.completions.create({ ...ask, stream: true, max_tokens: 4000, ignore_eos: true });
for await (const chunk of stream) {
  if (chunk.choices[0].delta.content) break;
}
assert.equal((await client.chat.completions.create(ask)).choices[0].message.content, text);
console.log(`openai-node ${VERSION}: ok`);
