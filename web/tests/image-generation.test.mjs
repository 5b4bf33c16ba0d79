// Image generation in a real browser: the same images as the native binary, steps and previews, aborting, images in conversations, two
// models that do not fit together, errors, a lost device.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { bundle, crashGpu, goldens, launch, mgm, openPage, prepareCrash, root, web } from "./browser.mjs";
import { serve } from "./server.mjs";
import { scriptedModel } from "./scripted-model.mjs";

const sdxl = join(goldens, "sdxl-base", "sdxl");
const image = join(goldens, "vicuna-7b", "image0.png");
/** Images that diffusers generated with the golden model, and the arguments of the native program that give them. */
const references = join(root, "tests/data/diffusion/images");
let server, context, page, folder;

before(async () => {
  folder = mkdtempSync(join(tmpdir(), "mgm-images-"));
  server = await serve({
    "/": join(web, "tests/page"), "/dist/": join(web, "dist"), "/goldens/": goldens, "/native/": folder, "/references/": references,
    "/scripted/": bundle(scriptedModel(), "f32"), "/sdxl/": bundle(sdxl, "f32"),
  });
  context = await launch();
  page = await openPage(context, `${server.url}/`);
  await prepareCrash(page);
  await page.evaluate(async () => {
    window.loads = new Map();
    const onProgress = ({ phase, part, loaded, total }) => phase === "load" && loads.set(part, loaded / total);
    window.mgm = await Mgm.load("/scripted/", { imageModel: "/sdxl/", onProgress });
    window.bytesOf = async (url) => {
      const bitmap = await createImageBitmap(await (await fetch(url)).blob());
      const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
      context.drawImage(bitmap, 0, 0);
      return context.getImageData(0, 0, bitmap.width, bitmap.height).data;
    };
    /** The largest difference of a byte from an image on the server. */
    window.differs = async (pixels, url) => {
      const expected = await bytesOf(url);
      if (expected.length !== pixels.data.length) return `${pixels.data.length} bytes, expected ${expected.length}`;
      return pixels.data.reduce((most, value, index) => Math.max(most, Math.abs(value - expected[index])), 0);
    };
    /** The error code of a call. */
    window.codeOf = (call) => call().then(() => "none", (error) => error.code ?? error.name);
  });
});

after(async () => {
  await context?.close();
  await server?.close();
  if (folder) rmSync(folder, { recursive: true, force: true });
});

/** Generates an image with the native binary. Returns its address. */
function native(name, ...more) {
  const steps = more.includes("--steps") ? [] : ["--steps", "2"];
  const stdio = ["ignore", "ignore", "inherit"];
  execFileSync(mgm, ["generate", sdxl, "--out", join(folder, `${name}.png`), ...steps, ...more], { stdio });
  return `/native/${name}.png`;
}

/**
 * Largest allowed difference of a byte. Two software adapters add in different orders: about 1e-5 of the range, which sometimes changes the
 * rounding to a byte.
 */
const TOLERANCE = 2;

test("the loaded models describe themselves", async () => {
  const info = await page.evaluate("mgm.info");
  assert.ok(info.chat && info.vision && info.software !== undefined);
  const { precision, width, height, multiple, weightBytes } = info.imageModel;
  assert.deepEqual([precision, width, height, multiple, weightBytes > 1e6], ["f32", 128, 128, 8, true]);
  const cached = await page.evaluate("cache.list()");
  assert.deepEqual(cached.map(({ url, imageGeneration }) => [new URL(url).pathname, imageGeneration]).sort(), [["/scripted/", false], ["/sdxl/", true]]);
});

test("a seed gives the native binary's image, with steps, previews, and a file with its settings", { timeout: 300_000 }, async () => {
  const url = native("seed", "--prompt", "a gold mine", "--negative-prompt", "dark", "--seed", "7", "--size", "128x64", "--scheduler", "euler-karras");
  const { steps, most, settings, timings, file } = await page.evaluate(async (url) => {
    const steps = [];
    const image = await mgm.generate({
      prompt: "a gold mine", negativePrompt: "dark", seed: 7, width: 128, height: 64, scheduler: "euler-karras", steps: 2,
      onStep: ({ done, total, preview }) => steps.push([done, total, preview?.width, preview?.height]),
    });
    const { settings, timings, png, pixels } = image;
    const again = await createImageBitmap(png);
    const file = { type: png.type, size: [again.width, again.height], text: await png.text() };
    return { steps, most: await differs(pixels, url), settings, timings, file };
  }, url);
  assert.ok(most <= TOLERANCE, `differs by ${most}`);
  const loads = Object.fromEntries(await page.evaluate("[...loads]"));
  assert.equal(Object.keys(loads).length, 5, `${Object.keys(loads)}`);
  assert.ok(Object.values(loads).every((part) => part === 1), JSON.stringify(loads));
  assert.deepEqual(steps, [[0, 2, undefined, undefined], [1, 2, 16, 8], [2, 2, 16, 8]]);
  assert.deepEqual(settings, {
    prompt: "a gold mine", negativePrompt: "dark", numInferenceSteps: 2, guidanceScale: 5, width: 128, height: 64, scheduler: "euler-karras", seed: 7, precision: "f32",
  });
  assert.ok(timings.stepMs > 0 && timings.totalMs > timings.stepMs);
  assert.deepEqual([file.type, ...file.size], ["image/png", 128, 64]);
  assert.match(file.text, /tEXtparameters\0a gold mine\nNegative prompt: dark\nSteps: 2, Sampler: euler-karras, CFG scale: 5, Seed: 7, Size: 128x64/);
  assert.match(file.text, /tEXtmgm\0\{"prompt":"a gold mine","negative_prompt":"dark","num_inference_steps":2,/);
});

test("image to image gives the native binary's image", { timeout: 300_000 }, async () => {
  const url = native(
    "image", "--prompt", "a (gold) mine", "--seed", "3", "--init-image", image, "--strength", "0.9", "--size", "64x64",
    "--prediction-type", "v_prediction", "--prompt-weights", "on",
  );
  const most = await page.evaluate(async (url) => {
    const image = await (await fetch("/goldens/vicuna-7b/image0.png")).blob();
    const { pixels } = await mgm.generate({
      prompt: "a (gold) mine", seed: 3, image, strength: 0.9, width: 64, height: 64, num_inference_steps: 2, predictionType: "v_prediction", promptWeights: "on",
    });
    return differs(pixels, url);
  }, url);
  assert.ok(most <= TOLERANCE, `differs by ${most}`);
});

test("a mask gives diffusers' image, and the native binary's at the default size and strength", { timeout: 300_000 }, async () => {
  const [{ inpaint }, files] = [JSON.parse(readFileSync(join(references, "cases.json"))), ["init.png", "mask.png"]];
  const option = (name) => inpaint[inpaint.indexOf(`--${name}`) + 1];
  const [width, height] = option("size").split("x").map(Number);
  const numbers = { width, height, steps: +option("steps"), seed: +option("seed"), strength: +option("strength"), guidanceScale: +option("guidance-scale") };
  assert.deepEqual([option("init-image"), option("mask")], files);
  const url = native(
    "mask", "--prompt", "a mine", "--seed", "3", "--guidance-scale", "1", ...["--init-image", image, "--mask", join(references, files[1])],
  );
  const { reference, whole, strength } = await page.evaluate(async ({ options, files, url }) => {
    const blobOf = async (url) => (await fetch(url)).blob();
    const [image, mask] = await Promise.all(files.map((file) => blobOf(`/references/${file}`)));
    const { pixels } = await mgm.generate({ ...options, image, mask });
    const photo = await blobOf("/goldens/vicuna-7b/image0.png");
    const other = await mgm.generate({ prompt: "a mine", seed: 3, guidanceScale: 1, steps: 2, image: photo, mask });
    return { reference: await differs(pixels, "/references/inpaint.png"), whole: await differs(other.pixels, url), strength: other.settings.strength };
  }, { options: { prompt: option("prompt"), ...numbers }, files, url });
  assert.ok(reference <= TOLERANCE && whole <= TOLERANCE, `differ by ${reference} and ${whole}`);
  assert.equal(strength, 0.9999);
});

test("generation aborts between two steps", { timeout: 300_000 }, async () => {
  const { name, done, after } = await page.evaluate(async () => {
    const stop = new AbortController();
    let last = 0;
    const onStep = ({ done }) => {
      last = done;
      if (done === 1) stop.abort();
    };
    const { name } = await mgm.generate({ prompt: "a", steps: 40, width: 64, height: 64, onStep, signal: stop.signal }).catch((error) => error);
    const after = await mgm.generate({ prompt: "a", steps: 1, width: 64, height: 64, seed: 1 });
    return { name, done: last, after: [after.pixels.width, after.pixels.height] };
  });
  assert.deepEqual([name, after], ["AbortError", [64, 64]]);
  assert.ok(done < 10, `${done} steps`);
});

/** Two turns in the page, each with a generated image. */
const ask = async (mgm) => {
  const blob = await (await fetch("/goldens/vicuna-7b/image0.png")).blob();
  const messages = [{ role: "user", content: [blob, "What is this made of?"] }];
  const settings = { mode: "always", steps: 2, seed: 3, previews: true, width: 64, height: 64 };
  const turns = [];
  for (const question of ["And this?", undefined]) {
    const deltas = [];
    const chat = mgm.chat(messages, { temperature: 0, image: settings });
    for await (const delta of chat) deltas.push(delta);
    const { text, tokenIds, usage, image } = await chat;
    messages.push({ role: "assistant", content: text }, { role: "user", content: question ?? "" });
    turns.push({
      text, tokenIds, usage, image, steps: deltas.filter(({ step }) => step?.preview).length, images: deltas.filter(({ type }) => type === "image").length,
      last: deltas.at(-1).answer.finishReason,
    });
  }
  return turns;
};

test("an image in, text and an image out", { timeout: 600_000 }, async () => {
  await page.evaluate(`window.ask = ${ask}`);
  const turns = await page.evaluate(async () => {
    window.turns = await ask(mgm);
    return turns.map((turn) => ({ ...turn, image: { settings: turn.image.settings } }));
  });
  for (const { text, image, steps, images, last } of turns) {
    assert.deepEqual([text, steps, images, last], ["<h> a gold mine</h>", 2, 1, "stop"]);
    assert.equal(image.settings.prompt, "a gold mine");
    assert.match(image.settings.negativePrompt, /^out of frame, lowres/);
  }
  assert.ok(turns[1].usage.cachedTokens >= turns[0].usage.promptTokens - 1, JSON.stringify(turns.map(({ usage }) => usage)));
  const negative = turns[0].image.settings.negativePrompt;
  const url = native("answer", "--prompt", "a gold mine", "--negative-prompt", negative, "--seed", "3", "--size", "64x64");
  const most = await page.evaluate(async (url) => Promise.all(turns.map(({ image }) => differs(image.pixels, url))), url);
  assert.ok(most.every((most) => most <= TOLERANCE), `differ by ${most}`);
  // The word "generate" asks for an image, unless the mode says otherwise.
  const counts = await page.evaluate(async () => {
    const count = async (question, mode) => {
      const { usage, image } = await mgm.chat([{ role: "user", content: question }], { temperature: 0, maxNewTokens: 4, ...(mode && { image: { mode } }) });
      return [usage.promptTokens, image !== undefined];
    };
    return [await count("Generate it"), await count("Generate it", "never"), await count("Draw it"), await count("Draw it", "always")];
  });
  const [[auto], [never], [plain], [always]] = counts;
  assert.ok(auto > never && always > plain, `${counts}`);
  assert.ok(counts.every(([, hasImage]) => !hasImage), "four tokens do not end in </h>");
});

test("earlier questions repeat their requests for images, so that the prompt matches the KV cache", { timeout: 600_000 }, async () => {
  const usages = await page.evaluate(async () => {
    const usages = [];
    const ask = async (messages, mode) => {
      const answer = await mgm.chat(messages, { temperature: 0, image: { mode, steps: 1, width: 64, height: 64 } });
      usages.push(answer.usage);
      return [...messages, { role: "assistant", content: answer.text }, { role: "user", content: "And this?" }];
    };
    const user = (content) => [{ role: "user", content }];
    // The mode of a question is remembered, whatever the mode of the next one is.
    const drawn = await ask(user("Draw it"), "always");
    await ask(await ask(drawn, "never"), "auto");
    const plain = await ask(user("Generate it"), "never");
    await ask(plain, "auto");
    // The package has not seen this conversation before its last call, but an answer shows the request.
    await ask(drawn, "never");
    return usages;
  });
  const [always, never, auto, unasked, asked, restored] = usages;
  for (const [before, after] of [[always, never], [never, auto], [unasked, asked]]) {
    assert.ok(after.cachedTokens >= before.promptTokens - 1, JSON.stringify(usages));
  }
  assert.equal(restored.promptTokens, never.promptTokens);
});

test("models that do not fit together are loaded alternately, with the same results", { timeout: 600_000 }, async () => {
  const { gpu, results } = await page.evaluate(async () => {
    const small = await Mgm.load("/scripted/", { imageModel: "/sdxl/", gpuMemory: 24 << 20 });
    const results = (await ask(small)).map(({ tokenIds, usage, image }, turn) => ({
      same: String(tokenIds) === String(turns[turn].tokenIds) && String(image.pixels.data) === String(turns[turn].image.pixels.data),
      cached: usage.cachedTokens,
    }));
    // The chat model is not on the device now, but its properties are known.
    await small.generate({ prompt: "a", steps: 1, width: 64, height: 64 });
    await small.loadImageModel("/sdxl/");
    const { chat, vision, maxPositions } = small.info;
    if (!chat || !vision || !(maxPositions > 0)) throw new Error(JSON.stringify(small.info));
    const { gpu } = await small.memory();
    small.dispose();
    return { gpu, results };
  });
  assert.ok(gpu <= 24 << 20, `${gpu} bytes`);
  // The second turn finds nothing of the first in the KV cache.
  assert.deepEqual(results, [{ same: true, cached: 0 }, { same: true, cached: 0 }]);
});

test("errors are typed and say what to do", async () => {
  const results = await page.evaluate(async () => {
    const text = await Mgm.load("/scripted/");
    const imageModel = await Mgm.load("/sdxl/");
    const user = (content) => [{ role: "user", content }];
    const messages = [];
    const record = async (call) => messages.push(await call().then(() => "none", (error) => `${error.code ?? error.name}: ${error.message}`));
    await record(() => text.generate({ prompt: "a" }));
    await record(() => text.chat(user("a"), { image: { mode: "always" } }));
    await record(() => imageModel.chat(user("a")));
    await record(() => text.loadImageModel("/scripted/"));
    await record(() => mgm.generate({ prompt: "a", width: 100 }));
    await record(() => mgm.generate({ prompt: "a", steps: 0 }));
    await record(() => mgm.generate({ prompt: "a", numInferenceSteps: 1.5 }));
    await record(() => mgm.generate({ prompt: "a", scheduler: "magic" }));
    await record(() => mgm.generate({ prompt: "a", guidanceScale: -1 }));
    await record(() => mgm.generate({}));
    await record(() => mgm.generate({ prompt: " " }));
    await record(() => mgm.generate({ prompt: "a", image: new Blob(["not an image"]) }));
    await record(() => mgm.generate({ prompt: "a", mask: new ImageData(8, 8) }));
    // A bundle of the wrong kind is not downloaded.
    await cache.delete("/scripted/");
    await record(() => text.loadImageModel("/scripted/"));
    const useless = (await cache.list()).some(({ url, cachedBytes }) => url.endsWith("/scripted/") && cachedBytes > 0);
    // An answer does not fail with its image.
    const { text: answered, imageError } = await mgm.chat(user("a"), { temperature: 0, image: { width: 100 } });
    const { info } = imageModel;
    const alone = await imageModel.generate({ prompt: "a", steps: 1, width: 64, height: 64, guidanceScale: 1 });
    text.dispose();
    imageModel.dispose();
    return { messages, info, alone: alone.pixels.width, useless, answered, imageError: `${imageError?.code}` };
  });
  const expected = [
    /^invalid-argument: no image model is loaded/, /^invalid-argument: no image model is loaded/,
    /^invalid-argument: this is an image model: it cannot chat/, /^invalid-argument: this is a chat model, not an image model/,
    /^invalid-argument: .*multiples of 8/, /^invalid-argument/, /^invalid-argument/, /^unsupported: .*magic/, /^invalid-argument: .*guidance/,
    /^invalid-argument: the prompt is empty/, /^invalid-argument: the prompt is empty/, /^image/,
    /^invalid-argument: a mask needs an initial image/,
  ];
  for (const [index, pattern] of expected.entries()) assert.match(results.messages[index], pattern);
  assert.match(results.messages.at(-1), /^invalid-argument: this is a chat model, not an image model/);
  assert.deepEqual([results.useless, results.answered, results.imageError], [false, "<h> a gold mine</h>", "invalid-argument"]);
  assert.ok(!results.info.chat && results.info.imageModel && results.info.maxPositions === 0);
  assert.equal(results.alone, 64);
});

test("memory is flat over images", { timeout: 600_000 }, async () => {
  const { first, last } = await page.evaluate(async () => {
    const generate = async (count) => {
      for (let i = 0; i < count; i++) await mgm.generate({ prompt: "a gold mine", steps: 1, width: 64, height: 64 });
      return mgm.memory();
    };
    return { first: await generate(2), last: await generate(6) };
  });
  assert.deepEqual(last, first);
});

test("an image survives the death of the GPU process", { timeout: 600_000 }, async () => {
  const url = native("lost", "--prompt", "a gold mine", "--seed", "5", "--size", "64x64", "--steps", "12");
  await page.evaluate(() => {
    window.stepped = new Promise((resolve) => {
      const onStep = ({ done }) => done === 2 && resolve();
      window.dying = mgm.generate({ prompt: "a gold mine", seed: 5, width: 64, height: 64, steps: 12, onStep });
    });
    return stepped;
  });
  await crashGpu(page);
  const most = await page.evaluate(async (url) => differs((await dying).pixels, url), url);
  assert.ok(most <= TOLERANCE, `differs by ${most}`);
});
