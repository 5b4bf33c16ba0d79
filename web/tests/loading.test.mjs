// Getting bundles onto this device, with the faults that networks and disks have.

import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, before, test } from "node:test";
import { bundle, expected, launch, openPage, web } from "./browser.mjs";
import { serve } from "./server.mjs";

let server, other, context, page, folder, manifest;
/** A folder for manifests that are none. */
const odd = mkdtempSync(join(tmpdir(), "mgm-odd-"));
let faults = () => ({});

before(async () => {
  folder = bundle("no-image", "f16", "--shard-size", "64K");
  manifest = JSON.parse(readFileSync(join(folder, "bundle.json")));
  const folders = { "/": join(web, "tests/page"), "/dist/": join(web, "dist"), "/model/": folder, "/odd/": odd };
  server = await serve(folders, { faults: (request) => faults(request) });
  other = await serve(folders);
  context = await launch();
  page = await openPage(context, `${server.url}/`);
});

after(async () => {
  await context?.close();
  await server?.close();
  await other?.close();
  rmSync(odd, { recursive: true });
});

afterEach(async () => {
  faults = () => ({});
  server.log.length = 0;
  await page.evaluate(() => cache.delete());
});

const asks = () => server.log.filter(({ path }) => path.startsWith("/model/"));
const shards = () => manifest.shards.map(({ file }) => `/model/${file}`);

/** Loads, asks, and says what happened. */
const load = (options = {}, target = page, url = "/model/") =>
  target.evaluate(
    async ({ options, url }) => {
      const progress = [];
      try {
        const mgm = await Mgm.load(url, { ...options, onProgress: (step) => progress.push(step) });
        const answer = await mgm.chat([{ role: "user", content: "Hello" }], { temperature: 0, maxNewTokens: 4 }).finished();
        mgm.dispose();
        return { ids: answer.tokenIds, progress };
      } catch (error) {
        return { code: error.code ?? error.name, message: error.message, progress };
      }
    },
    { options, url },
  );

test("progress counts bytes by part, up to all of them", async () => {
  const { progress, code, message } = await load();
  assert.equal(code, undefined, message);
  const downloads = progress.filter(({ phase }) => phase === "download");
  const bytes = [...manifest.files, ...manifest.shards].reduce((sum, { bytes }) => sum + bytes, 0);
  assert.deepEqual([downloads.at(-1).loaded, downloads.at(-1).total], [bytes, bytes]);
  assert.ok(progress.some(({ phase, loaded, total }) => phase === "load" && loaded === total));
});

test("a second visit works offline and asks for nothing but the manifest", async () => {
  const first = await load();
  server.log.length = 0;
  const second = await load();
  assert.deepEqual(second.ids, first.ids);
  assert.deepEqual(asks().map(({ path }) => path), ["/model/bundle.json"]);
  faults = ({ path }) => (path.startsWith("/model/") ? { drop: 0 } : {});
  assert.deepEqual((await load()).ids, first.ids);
  const [entry] = await page.evaluate(() => cache.list());
  assert.deepEqual([entry.url, entry.complete, entry.bytes], [`${server.url}/model/`, true, entry.cachedBytes]);
});

test("without any network a model that is here starts and answers; without the package's copies the error says so", async () => {
  const first = await load();
  assert.ok(first.ids, first.message);
  // The package keeps its own files beside the first load, which does not wait for that.
  await page.waitForFunction(async () => (await (await caches.open("mgm-webgpu")).keys()).length === 2);
  faults = () => ({ drop: 0 });
  server.log.length = 0;
  await context.setOffline(true);
  try {
    const second = await load();
    assert.deepEqual(second.ids, first.ids, second.message);
    await page.evaluate(() => caches.delete("mgm-webgpu"));
    const third = await load();
    assert.equal(third.code, "offline");
    assert.match(third.message, /the package's (worker|wasm module) could not be fetched/);
  } finally {
    await context.setOffline(false);
  }
});

test("a manifest that comes only at the third time is enough, and without storage too", async () => {
  for (const options of [{}, { cache: false }]) {
    await page.evaluate(() => cache.delete());
    server.log.length = 0;
    faults = ({ path, count }) => (path === "/model/bundle.json" && count < 2 ? { drop: 0 } : {});
    const { ids, message } = await load(options);
    assert.ok(ids, message);
    assert.equal(asks().filter(({ path }) => path === "/model/bundle.json").length, 3);
  }
});

test("what is no manifest is a typed error", async () => {
  for (const text of ["null", "{}", '{"files": [null], "shards": []}', '{"files": [], "shards": [{"file": "../x"}]}', "no JSON"]) {
    writeFileSync(join(odd, "bundle.json"), text);
    assert.equal((await load({}, page, "/odd/")).code, "config", text);
  }
});

test("connections that break are taken up where they broke", async () => {
  // Every file breaks three times, at another place each time.
  faults = ({ path, count }) => (shards().includes(path) && count < 3 ? { drop: 10_000 + 1000 * count } : {});
  const { ids, message } = await load();
  assert.ok(ids, message);
  const ranges = asks().filter(({ path }) => path === shards()[0]).map(({ range }) => range);
  assert.equal(ranges.length, 4);
  assert.equal(ranges[0], undefined);
  assert.match(ranges[1], /^bytes=\d+-$/);
  assert.ok(Number(/\d+/.exec(ranges[2])[0]) > Number(/\d+/.exec(ranges[1])[0]));
});

test("servers without ranges do as well", async () => {
  faults = ({ path, count }) => (shards().includes(path) ? { noRanges: true, ...(count < 2 && { drop: 20_000 }) } : {});
  const { ids, message } = await load();
  assert.ok(ids, message);
});

test("a load that was aborted goes on the next time", async () => {
  faults = ({ path }) => (shards().includes(path) ? { bytesPerSecond: 100_000 } : {});
  const reason = await page.evaluate(async () => {
    const stop = new AbortController();
    try {
      await Mgm.load("/model/", { signal: stop.signal, onProgress: ({ loaded }) => loaded > 300_000 && stop.abort() });
    } catch (error) {
      return error.name;
    }
  });
  assert.equal(reason, "AbortError");
  const [entry] = await page.evaluate(() => cache.list());
  assert.ok(!entry.complete && entry.cachedBytes > 0);
  faults = () => ({});
  server.log.length = 0;
  assert.ok((await load()).ids);
  const sent = asks().reduce((sum, { bytes }) => sum + bytes, 0);
  assert.ok(sent < entry.bytes - entry.cachedBytes + 100_000, `${sent} bytes of ${entry.bytes} came again`);
});

test("a corrupt byte is found; if it stays, the load fails with a checksum error", async () => {
  faults = ({ path, count }) => (path === shards()[1] && count === 0 ? { corrupt: 40_000 } : {});
  assert.ok((await load()).ids, "one corrupt transfer is repaired");
  await page.evaluate(() => cache.delete());
  faults = ({ path }) => (path === shards()[1] ? { corrupt: 40_000 } : {});
  const { code, message } = await load();
  assert.equal(code, "checksum");
  assert.ok(message.includes(manifest.shards[1].file), message);
});

test("errors have types: no server, no bundle, server errors, CORS, no room", async () => {
  faults = ({ path }) => (path.startsWith("/model/") ? { drop: 0 } : {});
  assert.equal((await load()).code, "network");
  faults = () => ({});
  assert.equal((await load({}, page, "/nowhere/")).code, "http");
  assert.equal((await load({}, page, "/")).code, "http");
  faults = ({ path }) => (path === shards()[0] ? { status: 503 } : {});
  assert.equal((await load()).code, "network");
  assert.equal((await load({}, page, `${other.url}/model/`)).code, "cors");
  const session = await context.newCDPSession(page);
  await session.send("Storage.overrideQuotaForOrigin", { origin: server.url, quotaSize: 400_000 });
  faults = () => ({});
  const { code, message } = await load();
  await session.send("Storage.overrideQuotaForOrigin", { origin: server.url });
  assert.equal(code, "quota");
  assert.match(message, /not enough room/);
});

test("two tabs at once download once", async () => {
  faults = ({ path }) => (shards().includes(path) ? { bytesPerSecond: 200_000 } : {});
  const tab = await openPage(context, `${server.url}/`);
  const [first, second] = await Promise.all([load(), load({}, tab)]);
  await tab.close();
  assert.ok(first.ids && second.ids, first.message ?? second.message);
  assert.deepEqual(first.ids, second.ids);
  assert.equal(asks().filter(({ path }) => path === shards()[0]).length, 1);
});

test("without the cache nothing is kept", async () => {
  assert.ok((await load({ cache: false })).ids);
  assert.deepEqual(await page.evaluate(() => cache.list()), []);
});

test("files that the user chose: a bundle's, a checkpoint's", async () => {
  const files = [manifest.files, manifest.shards].flat().map(({ file }) => file).concat("bundle.json");
  const result = await page.evaluate(async (names) => {
    const files = await Promise.all(names.map(async (name) => new File([await (await fetch(`/model/${name}`)).blob()], name)));
    const mgm = await Mgm.load(files);
    const answer = await mgm.chat([{ role: "user", content: "Hello" }], { temperature: 0, maxNewTokens: 4 }).finished();
    const code = await Mgm.load(files.slice(1)).catch((error) => error.code);
    return { ids: answer.tokenIds, code };
  }, files);
  assert.deepEqual(result.ids, (await load()).ids);
  assert.ok(["missing-file", "config"].includes(result.code), result.code);
  assert.ok(expected("no-image"));
});

test("measured kernels are kept with the device they are of, and what is kept does no harm", async () => {
  const plain = await load();
  const kept = await page.evaluate(async () => {
    const mgm = await Mgm.load("/model/");
    await mgm.tune({ int8: true });
    await mgm.tune();
    mgm.dispose();
    const folder = await (await navigator.storage.getDirectory()).getDirectoryHandle("mgm");
    return (await (await folder.getFileHandle("tuning.json")).getFile()).text();
  });
  const { device, tuning } = JSON.parse(kept);
  assert.ok(device.includes(await page.evaluate(() => navigator.userAgent)), device);
  const { products } = JSON.parse(tuning);
  assert.ok(products.length > 0 && products.every(({ form, microseconds }) => form && microseconds > 0), tuning);
  // Of this device; of another; with forms that there are not; no JSON.
  const impossible = tuning.replaceAll(/"form":("\w+"|\{[^}]*\}+)/g, '"form":{"uniform":0}');
  assert.notEqual(impossible, tuning);
  for (const text of [kept, JSON.stringify({ device: "another", tuning }), JSON.stringify({ device, tuning: impossible }), "{", "null"]) {
    await page.evaluate(async (text) => {
      const folder = await (await navigator.storage.getDirectory()).getDirectoryHandle("mgm");
      const file = await (await folder.getFileHandle("tuning.json")).createWritable();
      await file.write(text);
      await file.close();
    }, text);
    const { ids, message } = await load();
    assert.deepEqual(ids, plain.ids, message ?? text);
  }
});
