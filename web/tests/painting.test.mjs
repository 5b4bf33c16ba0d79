// Pictures in a real browser: the same as native for the same seed, steps and previews, stopping, a conversation that ends in a
// picture, two models that take turns, a lost device, errors.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { bundle, goldens, launch, mgm, openPage, web } from "./browser.mjs";
import { serve } from "./server.mjs";
import { talker } from "./talker.mjs";

const sdxl = join(goldens, "sdxl-base", "sdxl");
const image = join(goldens, "vicuna-7b", "image0.png");
let server, context, page, folder;

before(async () => {
  folder = mkdtempSync(join(tmpdir(), "mgm-pictures-"));
  server = await serve({
    "/": join(web, "tests/page"), "/dist/": join(web, "dist"), "/goldens/": goldens, "/native/": folder,
    "/talker/": bundle(talker(), "f32"), "/sdxl/": bundle(sdxl, "f32"),
  });
  context = await launch();
  page = await openPage(context, `${server.url}/`);
  await page.evaluate(async () => {
    window.loads = new Map();
    const onProgress = ({ phase, part, loaded, total }) => phase === "load" && loads.set(part, loaded / total);
    window.mgm = await Mgm.load("/talker/", { painter: "/sdxl/", onProgress });
    window.bytesOf = async (url) => {
      const bitmap = await createImageBitmap(await (await fetch(url)).blob());
      const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
      context.drawImage(bitmap, 0, 0);
      return context.getImageData(0, 0, bitmap.width, bitmap.height).data;
    };
    /** The largest difference of a byte from a picture of the server. */
    window.differs = async (pixels, url) => {
      const expected = await bytesOf(url);
      if (expected.length !== pixels.data.length) return `${pixels.data.length} bytes, expected ${expected.length}`;
      return pixels.data.reduce((most, value, index) => Math.max(most, Math.abs(value - expected[index])), 0);
    };
    /** How a call fails. */
    window.codeOf = (call) => call().then(() => "none", (error) => error.code ?? error.name);
  });
});

after(async () => {
  await context?.close();
  await server?.close();
  if (folder) rmSync(folder, { recursive: true, force: true });
});

/** What the binary paints: its address. */
function native(name, ...more) {
  const steps = more.includes("--steps") ? [] : ["--steps", "2"];
  const stdio = ["ignore", "ignore", "inherit"];
  execFileSync(mgm, ["generate", sdxl, "--out", join(folder, `${name}.png`), ...steps, ...more], { stdio });
  return `/native/${name}.png`;
}

/** Two software GPUs add in different orders: about 1e-5 of the scale, which moves a value over a border between bytes now and then. */
const NEAR = 2;

test("what is loaded says so", async () => {
  const info = await page.evaluate("mgm.info");
  assert.ok(info.chats && info.sees && info.software !== undefined);
  const { precision, width, height, multiple, weightBytes } = info.painter;
  assert.deepEqual([precision, width, height, multiple, weightBytes > 1e6], ["f32", 128, 128, 8, true]);
  const kept = await page.evaluate("cache.list()");
  assert.deepEqual(kept.map(({ url, paints }) => [new URL(url).pathname, paints]).sort(), [["/sdxl/", true], ["/talker/", false]]);
});

test("a seed gives the picture that the binary paints, with steps, previews and a file that says how", { timeout: 300_000 }, async () => {
  const url = native("seed", "--prompt", "a gold mine", "--negative-prompt", "dark", "--seed", "7", "--size", "128x64", "--scheduler", "euler-karras");
  const { steps, most, settings, timings, file } = await page.evaluate(async (url) => {
    const steps = [];
    const picture = await mgm.generate({
      prompt: "a gold mine", negativePrompt: "dark", seed: 7, width: 128, height: 64, scheduler: "euler-karras", steps: 2,
      onStep: ({ done, total, preview }) => steps.push([done, total, preview?.width, preview?.height]),
    });
    const { settings, timings, png, pixels } = picture;
    const again = await createImageBitmap(png);
    const file = { type: png.type, size: [again.width, again.height], text: await png.text() };
    return { steps, most: await differs(pixels, url), settings, timings, file };
  }, url);
  assert.ok(most <= NEAR, `differs by ${most}`);
  const loads = Object.fromEntries(await page.evaluate("[...loads]"));
  assert.equal(Object.keys(loads).length, 5, `${Object.keys(loads)}`);
  assert.ok(Object.values(loads).every((part) => part === 1), JSON.stringify(loads));
  assert.deepEqual(steps, [[0, 2, undefined, undefined], [1, 2, 16, 8], [2, 2, 16, 8]]);
  assert.deepEqual(settings, {
    prompt: "a gold mine", negativePrompt: "dark", steps: 2, guidance: 5, width: 128, height: 64, scheduler: "euler-karras", seed: 7, precision: "f32",
  });
  assert.ok(timings.stepMs > 0 && timings.totalMs > timings.stepMs);
  assert.deepEqual([file.type, ...file.size], ["image/png", 128, 64]);
  assert.match(file.text, /tEXtparameters\0a gold mine\nNegative prompt: dark\nSteps: 2, Sampler: euler-karras, CFG scale: 5, Seed: 7, Size: 128x64/);
  assert.match(file.text, /tEXtmgm\0\{"prompt":"a gold mine","negative_prompt":"dark","steps":2,/);
});

test("a picture can be begun with", { timeout: 300_000 }, async () => {
  const url = native("image", "--prompt", "a gold mine", "--seed", "3", "--init-image", image, "--strength", "0.9", "--size", "64x64");
  const most = await page.evaluate(async (url) => {
    const image = await (await fetch("/goldens/vicuna-7b/image0.png")).blob();
    const { pixels } = await mgm.generate({ prompt: "a gold mine", seed: 3, image, strength: 0.9, width: 64, height: 64, steps: 2 });
    return differs(pixels, url);
  }, url);
  assert.ok(most <= NEAR, `differs by ${most}`);
});

test("painting stops between two steps", { timeout: 300_000 }, async () => {
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

/** Two turns in the page, each with a picture. */
const ask = async (mgm) => {
  const blob = await (await fetch("/goldens/vicuna-7b/image0.png")).blob();
  const messages = [{ role: "user", content: [blob, "What is this made of?"] }];
  const settings = { when: "always", steps: 2, seed: 3, previews: true };
  const turns = [];
  for (const question of ["And this?", undefined]) {
    const deltas = [];
    const chat = mgm.chat(messages, { temperature: 0, picture: settings });
    for await (const delta of chat) deltas.push(delta);
    const { text, tokenIds, usage, picture } = await chat.finished();
    messages.push({ role: "assistant", content: text }, { role: "user", content: question ?? "" });
    turns.push({
      text, tokenIds, usage, picture, steps: deltas.filter(({ step }) => step?.preview).length, pictures: deltas.filter(({ picture }) => picture).length,
      last: deltas.at(-1).finishReason,
    });
  }
  return turns;
};

test("an image in, text and a picture out", { timeout: 600_000 }, async () => {
  await page.evaluate(`window.ask = ${ask}`);
  const turns = await page.evaluate(async () => {
    window.turns = await ask(mgm);
    return turns.map((turn) => ({ ...turn, picture: { settings: turn.picture.settings } }));
  });
  for (const { text, picture, steps, pictures, last } of turns) {
    assert.deepEqual([text, steps, pictures, last], ["<h> a gold mine</h>", 2, 1, "stop"]);
    assert.equal(picture.settings.prompt, "a gold mine");
    assert.match(picture.settings.negativePrompt, /^out of frame, lowres/);
  }
  const negative = turns[0].picture.settings.negativePrompt;
  const url = native("answer", "--prompt", "a gold mine", "--negative-prompt", negative, "--seed", "3");
  const most = await page.evaluate(async (url) => Promise.all(turns.map(({ picture }) => differs(picture.pixels, url))), url);
  assert.ok(most.every((most) => most <= NEAR), `differ by ${most}`);
  // A question asks for a picture by the word, by itself; without it there is none to be asked for, and none where none is wanted.
  const counts = await page.evaluate(async () => {
    const count = async (question, picture) => {
      const { usage, picture: painted } = await mgm.chat([{ role: "user", content: question }], { temperature: 0, maxNewTokens: 4, ...(picture !== undefined && { picture }) }).finished();
      return [usage.promptTokens, painted !== undefined];
    };
    return [await count("Generate it"), await count("Generate it", false), await count("Paint it"), await count("Paint it", true)];
  });
  const [[auto], [off], [plain], [always]] = counts;
  assert.ok(auto > off && always > plain, `${counts}`);
  assert.ok(counts.every(([, painted]) => !painted), "four tokens do not end in </h>");
});

test("where both do not fit they take turns, with the same results", { timeout: 600_000 }, async () => {
  const { gpu, results } = await page.evaluate(async () => {
    const small = await Mgm.load("/talker/", { painter: "/sdxl/", gpuMemory: 24 << 20 });
    const results = (await ask(small)).map(({ tokenIds, usage, picture }, turn) => ({
      same: String(tokenIds) === String(turns[turn].tokenIds) && String(picture.pixels.data) === String(turns[turn].picture.pixels.data),
      cached: usage.cachedTokens,
    }));
    // What answers is off the device now, and known all the same.
    await small.generate({ prompt: "a", steps: 1, width: 64, height: 64 });
    await small.loadPainter("/sdxl/");
    const { chats, sees, maxPositions } = small.info;
    if (!chats || !sees || !(maxPositions > 0)) throw new Error(JSON.stringify(small.info));
    const { gpu } = await small.memory();
    small.dispose();
    return { gpu, results };
  });
  assert.ok(gpu <= 24 << 20, `${gpu} bytes`);
  // Nothing of the first turn was left on the device in the second.
  assert.deepEqual(results, [{ same: true, cached: 0 }, { same: true, cached: 0 }]);
});

test("errors are typed, and say what to do", async () => {
  const results = await page.evaluate(async () => {
    const text = await Mgm.load("/talker/");
    const painter = await Mgm.load("/sdxl/");
    const user = (content) => [{ role: "user", content }];
    const messages = [];
    const told = async (call) => messages.push(await call().then(() => "none", (error) => `${error.code ?? error.name}: ${error.message}`));
    await told(() => text.generate({ prompt: "a" }));
    await told(() => text.chat(user("a"), { picture: true }).finished());
    await told(() => painter.chat(user("a")).finished());
    await told(() => text.loadPainter("/talker/"));
    await told(() => mgm.generate({ prompt: "a", width: 100 }));
    await told(() => mgm.generate({ prompt: "a", steps: 0 }));
    await told(() => mgm.generate({ prompt: "a", steps: 1.5 }));
    await told(() => mgm.generate({ prompt: "a", scheduler: "magic" }));
    await told(() => mgm.generate({ prompt: "a", guidance: -1 }));
    await told(() => mgm.generate({}));
    await told(() => mgm.generate({ prompt: " " }));
    await told(() => mgm.generate({ prompt: "a", image: new Blob(["no picture"]) }));
    // What is of no use is not downloaded.
    await cache.delete("/talker/");
    await told(() => text.loadPainter("/talker/"));
    const useless = (await cache.list()).some(({ url, cachedBytes }) => url.endsWith("/talker/") && cachedBytes > 0);
    // A picture that fails costs no answer.
    const { text: answered, pictureError } = await mgm.chat(user("a"), { temperature: 0, picture: { width: 100 } }).finished();
    const { info } = painter;
    const alone = await painter.generate({ prompt: "a", steps: 1, width: 64, height: 64, guidance: 1 });
    text.dispose();
    painter.dispose();
    return { messages, info, alone: alone.pixels.width, useless, answered, pictureError: `${pictureError?.code}` };
  });
  const expected = [
    /^invalid-argument: no model that paints is loaded/, /^invalid-argument: no model that paints is loaded/,
    /^invalid-argument: this model paints, and does not answer/, /^invalid-argument: this model answers and does not paint/,
    /^invalid-argument: .*multiples of 8/, /^invalid-argument/, /^invalid-argument/, /^unsupported: .*magic/, /^invalid-argument: guidance/,
    /^invalid-argument: a prompt says/, /^invalid-argument: a prompt says/, /^image/,
  ];
  for (const [index, pattern] of expected.entries()) assert.match(results.messages[index], pattern);
  assert.match(results.messages.at(-1), /^invalid-argument: this model answers and does not paint/);
  assert.deepEqual([results.useless, results.answered, results.pictureError], [false, "<h> a gold mine</h>", "invalid-argument"]);
  assert.ok(!results.info.chats && results.info.painter && results.info.maxPositions === 0);
  assert.equal(results.alone, 64);
});

test("memory is flat over pictures", { timeout: 600_000 }, async () => {
  const { first, last } = await page.evaluate(async () => {
    const paint = async (count) => {
      for (let i = 0; i < count; i++) await mgm.generate({ prompt: "a gold mine", steps: 1, width: 64, height: 64 });
      return mgm.memory();
    };
    return { first: await paint(2), last: await paint(6) };
  });
  assert.deepEqual(last, first);
});

test("a GPU process that dies costs no picture", { timeout: 600_000 }, async () => {
  const url = native("lost", "--prompt", "a gold mine", "--seed", "5", "--size", "64x64", "--steps", "12");
  await page.evaluate(() => {
    window.stepped = new Promise((resolve) => {
      const onStep = ({ done }) => done === 2 && resolve();
      window.dying = mgm.generate({ prompt: "a gold mine", seed: 5, width: 64, height: 64, steps: 12, onStep });
    });
    return stepped;
  });
  const session = await context.newCDPSession(page);
  await session.send("Browser.crashGpuProcess");
  const most = await page.evaluate(async (url) => differs((await dying).pixels, url), url);
  assert.ok(most <= NEAR, `differs by ${most}`);
});
