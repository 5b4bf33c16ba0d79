// Models in repositories of the Hub, as they were released: converted to bundles while they are downloaded.

import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, before, test } from "node:test";
import { bundle, data, expected, goldens, launch, openPage, web } from "./browser.mjs";
import { serveHub } from "./hub-server.mjs";
import { serve } from "./server.mjs";

const CHAT = "YanweiLi/MGM-2B";
const IMAGES = "stabilityai/sdxl-turbo";
const QUANTISED = "owner/model-GGUF";
const TOWERS = {
  "openai/clip-vit-large-patch14-336": "clip-vit-large-patch14-336",
  "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup": "openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup",
};
const gemma = join(goldens, "gemma-2b");
const repositories = {
  [CHAT]: join(gemma, expected("gemma-2b").checkpoint),
  [IMAGES]: join(goldens, "sdxl-base", "sdxl"),
  [QUANTISED]: data("gguf"),
  ...Object.fromEntries(Object.entries(TOWERS).map(([repo, folder]) => [repo, join(gemma, "OpenAI", folder)])),
};
const TOKEN = "hf_secret";

/** The list of the demo page. */
const listed = [
  { name: "SDXL-Turbo", url: `hf:${IMAGES}`, bytes: 5_300_000, memoryBytes: 7_300_000, downloadBytes: 10_300_000, imageGeneration: true, licence: "a licence" },
  { name: "MGM-2B", url: `hf:${CHAT}`, bytes: 2_000_000_000, memoryBytes: 2_100_000_000, downloadBytes: 7_200_000_000, licence: "another" },
];
const folder = mkdtempSync(join(tmpdir(), "mgm-listed-"));

let server, hub, closed, context, page;
let faults = () => ({});

before(async () => {
  writeFileSync(join(folder, "models.json"), JSON.stringify(listed));
  const demo = { "/demo/": join(web, "demo/dist"), "/demo/models.json": join(folder, "models.json") };
  server = await serve({ "/": join(web, "tests/page"), "/dist/": join(web, "dist"), ...demo });
  hub = await serveHub(repositories, { faults: (request) => faults(request) });
  closed = await serveHub(repositories, { token: TOKEN });
  context = await launch();
  page = await openPage(context, `${server.url}/`);
});

after(async () => {
  await context?.close();
  await Promise.all([server, hub, closed].map((server) => server?.close()));
  rmSync(folder, { recursive: true });
});

afterEach(async () => {
  faults = () => ({});
  for (const { log, files } of [hub, closed]) log.length = files.log.length = 0;
  await page.evaluate(() => cache.delete());
});

const manifestOf = (folder) => JSON.parse(readFileSync(join(folder, "bundle.json")));
const digests = ({ shards }) => shards.map(({ sha256 }) => sha256);

/** Loads a model from a hub; returns its answer, or the error, with the digests of what was kept. */
const load = (source, options = {}, { url, token } = { url: hub.url }) =>
  page.evaluate(
    async ({ source, options, url, token, abortAt }) => {
      Object.assign(env, { hubUrl: url, hubToken: token });
      const progress = [];
      const controller = new AbortController();
      const onProgress = (step) => {
        progress.push(step);
        if (step.phase === "import" && step.loaded >= abortAt * step.total) setTimeout(() => controller.abort(), 1000);
      };
      try {
        const mgm = await Mgm.load(source, { ...options, onProgress, signal: controller.signal });
        const answer = mgm.info.chat && (await mgm.chat([{ role: "user", content: "Hello" }], { temperature: 0, maxNewTokens: 4 }));
        const { precision } = mgm.info;
        mgm.dispose();
        return { ids: answer?.tokenIds, precision, progress };
      } catch (error) {
        return { code: error instanceof DOMException ? error.name : error.code, message: error.message, progress };
      }
    },
    { source, options, url, token, abortAt: options.abortAt ?? 2 },
  );

/** The shards' digests in the bundle that is kept for a source. */
const kept = () =>
  page.evaluate(async () => {
    const root = await (await navigator.storage.getDirectory()).getDirectoryHandle("mgm");
    for await (const folder of root.values()) {
      if (folder.kind !== "directory") continue;
      const file = await (await folder.getFileHandle("bundle.json")).getFile();
      return JSON.parse(await file.text());
    }
  });

const downloaded = () => hub.files.log.reduce((sum, { bytes }) => sum + bytes, 0);

test("a released checkpoint becomes the bundle that mgm pack writes, and needs no network afterwards", async () => {
  const planned = await page.evaluate(async ([source, url]) => (Object.assign(env, { hubUrl: url }), Mgm.inspect(source)), [`hf:${CHAT}`, hub.url]);
  const before = downloaded();
  const first = await load(`hf:${CHAT}`);
  assert.equal(first.code, undefined, first.message);
  const packed = manifestOf(bundle("gemma-2b", "q4"));
  assert.deepEqual(digests(await kept()), digests(packed));
  assert.equal(first.precision, "q4");
  // Headers and configurations come on top of the tensors, and what was under way when a connection was closed.
  const bytes = downloaded() - before;
  assert.ok(planned.downloadBytes <= bytes && bytes < 2 * planned.downloadBytes, `${bytes} of ${planned.downloadBytes} bytes, ${hub.files.log.length} requests`);
  const { loaded, total } = first.progress.filter(({ phase }) => phase === "import").at(-1);
  assert.equal(loaded, total);
  assert.deepEqual([planned.name, planned.imageGeneration, planned.precision], ["MGM-2B", false, "q4"]);
  const [entry] = await page.evaluate(() => cache.list());
  assert.ok(entry.complete && entry.bytes === entry.cachedBytes && Math.abs(entry.bytes - planned.storedBytes) < 0.02 * entry.bytes + 65536);

  hub.log.length = hub.files.log.length = 0;
  const second = await load(`hf:${CHAT}`);
  assert.deepEqual(second.ids, first.ids);
  assert.equal(hub.log.length + hub.files.log.length, 0);
  assert.deepEqual((await load(`${hub.url}/${CHAT}/resolve/main/`)).ids, first.ids);
  assert.equal(hub.log.length + hub.files.log.length, 0);
  const again = await page.evaluate((source) => Mgm.inspect(source), `hf:${CHAT}`);
  assert.equal(again.downloadBytes, 0);
});

test("an image model is imported, and another precision replaces its bundle", async () => {
  const { code, message } = await load(`hf:${IMAGES}`, { precision: "q8" });
  assert.equal(code, undefined, message);
  assert.deepEqual(digests(await kept()), digests(manifestOf(bundle(repositories[IMAGES], "q8"))));
  const { precision } = await load(`hf:${IMAGES}`, { precision: "f16" });
  assert.equal(precision, "f16");
  assert.deepEqual(digests(await kept()), digests(manifestOf(bundle(repositories[IMAGES], "f16"))));
  assert.match((await load(`hf:${IMAGES}`, { precision: "q4" })).message, /q4, expected f32, f16 or q8/);
});

test("a GGUF file becomes the bundle that mgm pack writes, in its own block types", async () => {
  const source = `hf:${QUANTISED}/llama.gguf`;
  const first = await load(source);
  assert.ok(first.ids, first.message);
  assert.deepEqual(digests(await kept()), digests(manifestOf(bundle(join(repositories[QUANTISED], "llama.gguf")))));
  hub.log.length = 0;
  assert.deepEqual((await load(source)).ids, first.ids);
  assert.equal(hub.log.length, 0);
  assert.match((await load(`hf:${QUANTISED}/other.gguf`)).message, /has no file other\.gguf/);
});

test("an import resumes after its last complete file", async () => {
  await load(`hf:${IMAGES}`);
  const [bytes, whole] = [downloaded(), await kept()];
  await page.evaluate(() => cache.delete());
  // The autoencoder comes last.
  faults = ({ path }) => (path.includes("/vae/") ? { hang: 1e5 } : {});
  const aborted = await load(`hf:${IMAGES}`, { abortAt: 0.5 });
  faults = () => ({});
  assert.equal(aborted.code, "AbortError");
  const [entry] = await page.evaluate(() => cache.list());
  assert.ok(!entry.complete && entry.cachedBytes > 0 && entry.cachedBytes < entry.bytes, JSON.stringify(entry));
  hub.files.log.length = 0;
  assert.equal((await load(`hf:${IMAGES}`)).code, undefined);
  assert.deepEqual(await kept(), whole);
  assert.ok(downloaded() < 0.9 * bytes, `${downloaded()} of ${bytes} bytes`);
});

test("broken connections are repaired, also without storage", async () => {
  let count = 0;
  faults = () => (++count % 3 === 0 ? { drop: 3000 } : {});
  const { code, message } = await load(`hf:${IMAGES}`, { cache: false });
  assert.equal(code, undefined, message);
});

test("a chat model is refused as an image model before it is downloaded", async () => {
  const source = `hf:${CHAT}`;
  const refused = await page.evaluate(async ({ source, url }) => {
    Object.assign(env, { hubUrl: url, hubToken: undefined });
    const mgm = await Mgm.load("hf:stabilityai/sdxl-turbo");
    return mgm.loadImageModel(source).then(() => undefined, ({ code, message }) => [code, message]);
  }, { source, url: hub.url });
  assert.equal(refused[0], "invalid-argument", refused[1]);
});

test("errors say what is wrong with a repository", async () => {
  const missing = await load("hf:nobody/nothing");
  assert.equal(missing.code, "http");
  assert.match(missing.message, /no public repository nobody\/nothing.*status 401.*hubToken/);
  const odd = await load("hf:laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup");
  assert.equal(odd.code, "missing-file");
  faults = () => ({ noRanges: true });
  const whole = await load(`hf:${IMAGES}`);
  assert.match(whole.message, /range requests/);
});

test("the token goes to the hub, not to the host of its files", async () => {
  const { code, message } = await load(`hf:${IMAGES}`, {}, { url: closed.url, token: TOKEN });
  assert.equal(code, undefined, message);
  assert.ok(closed.log.every(({ authorization }) => authorization === `Bearer ${TOKEN}`));
  assert.ok(closed.files.log.length > 0 && closed.files.log.every(({ authorization }) => authorization === undefined));
});

test("the demo page lists released models, asks with the exact sizes, and imports one", { timeout: 120_000 }, async () => {
  const demo = await context.newPage();
  // The page's hub is the real one.
  await demo.route("https://huggingface.co/**", async (route) => {
    const { pathname, search } = new URL(route.request().url());
    await route.fulfill({ response: await route.fetch({ url: hub.url + pathname + search }) });
  });
  const asked = [];
  demo.on("dialog", (dialog) => (asked.push(dialog.message()), asked.length === 1 ? dialog.dismiss() : dialog.accept()));
  await demo.goto(`${server.url}/demo/`);
  await demo.getByRole("button", { name: "Choose a model" }).first().click();
  await demo.getByText("about 10 MB to download, 5 MB on this device · about 7 MB of GPU memory · licence: a licence").waitFor();
  const download = demo.getByRole("button", { name: "Download SDXL-Turbo" });
  await download.click();
  while (asked.length === 0) await demo.waitForTimeout(50);
  assert.equal(hub.files.log.some(({ path }) => path.endsWith("merges.txt")), true);
  assert.match(asked[0] ?? "", /^SDXL-Turbo: 10 MB from the Hugging Face Hub, 5 MB on this device \(f16\)\. Licence: a licence\./);
  await download.click();
  await demo.getByRole("button", { name: "SDXL-Turbo · f16" }).waitFor();
  assert.equal(asked.length, 2);
  hub.log.length = 0;
  await demo.reload();
  await demo.getByRole("button", { name: "SDXL-Turbo · f16" }).waitFor();
  assert.equal(hub.log.length, 0);
  await demo.close();
});

test("the demo page says whether a listed model fits this device, from its memory and then from its exact sizes", { timeout: 120_000 }, async () => {
  const ask = async (memory, quota) => {
    const demo = await context.newPage();
    await demo.addInitScript(({ memory, quota }) => {
      Object.defineProperty(navigator, "deviceMemory", { value: memory, configurable: true });
      if (quota) navigator.storage.estimate = async () => ({ quota, usage: 0 });
    }, { memory, quota });
    await demo.route("https://huggingface.co/**", async (route) => {
      const { pathname, search } = new URL(route.request().url());
      await route.fulfill({ response: await route.fetch({ url: hub.url + pathname + search }) });
    });
    const question = new Promise((resolve) => demo.on("dialog", (dialog) => (resolve(dialog.message()), dialog.dismiss())));
    await demo.goto(`${server.url}/demo/`);
    await demo.getByRole("button", { name: "Choose a model" }).first().click();
    const item = demo.locator("li", { hasText: "MGM-2B" });
    const facts = await item.locator(".muted").textContent();
    await item.getByRole("button", { name: "Download MGM-2B" }).click();
    const asked = await question;
    await demo.close();
    return { facts, asked };
  };
  const sizes = "about 7.2 GB to download, 2.0 GB on this device · about 2.1 GB of GPU memory";
  assert.equal((await ask(8)).facts, `${sizes} · licence: another`);
  const { facts, asked } = await ask(2);
  assert.equal(facts, `${sizes} · may not fit into this device's memory: a page can use about 1.1 GB · licence: another`);
  // The repository of the test has 2 MB: with the KV cache it fits.
  assert.match(asked, /^MGM-2B: \d+ MB from the Hugging Face Hub, \d MB on this device \(q4\)\. Licence: another\. Download it\?$/);
  const small = await ask(8, 1_000_000);
  assert.equal(small.facts, `${sizes} · not enough space on this device: 1 MB are free · licence: another`);
  assert.match(small.asked, /\. Warning: not enough space on this device: 1 MB are free\. Licence/);
});
