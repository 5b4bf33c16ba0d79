// Downloads and their storage, with faults of networks and disks.

import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, before, test } from "node:test";
import { isDeepStrictEqual } from "node:util";
import { bundle, expected, held, launch, launchWithQuota, openPage, watchWorkers, web } from "./browser.mjs";
import { serve } from "./server.mjs";

let server, other, context, page, folder, manifest;
/** A folder for invalid manifests. */
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
  server.endHanging();
  server.log.length = 0;
  await page.evaluate(() => cache.delete());
});

const requests = () => server.log.filter(({ path }) => path.startsWith("/model/"));
const shards = () => manifest.shards.map(({ file }) => `/model/${file}`);

/**
 * Loads a model and asks a question; returns the answer or the error. Most of the time goes into the pipelines of the answer: `asks: false`
 * loads without one, and returns `loaded`.
 */
const load = ({ asks = true, ...options } = {}, target = page, url = "/model/") =>
  target.evaluate(
    async ({ asks, options, url }) => {
      const progress = [];
      try {
        const mgm = await Mgm.load(url, { ...options, onProgress: (step) => progress.push(step) });
        const answer = asks && (await mgm.chat([{ role: "user", content: "Hello" }], { temperature: 0, maxNewTokens: 4 }));
        const { stored } = mgm.info;
        mgm.dispose();
        return { ids: answer.tokenIds, progress, stored, loaded: true };
      } catch (error) {
        return { code: error.code ?? error.name, message: error.message, progress };
      }
    },
    { asks, options, url },
  );

/** Runs work with the package's worker, whose script follows another one. */
async function withWorker(script, work) {
  writeFileSync(join(odd, "worker.js"), `${script}\n${readFileSync(join(web, "dist/worker.js"), "utf8")}`);
  await page.evaluate(() => (env.workerUrl = "/odd/worker.js"));
  try {
    return await work();
  } finally {
    await page.evaluate(() => (env.workerUrl = undefined));
  }
}

/** Runs work with a worker whose timers are `scale` times as fast. */
const withFastWorker = (scale, work) =>
  withWorker(`{ const wait = setTimeout; self.setTimeout = (call, time, ...values) => wait(call, time / ${scale}, ...values); }`, work);

/** The same with the page's timers. */
const withFastTimers = (scale, work) =>
  withFastWorker(scale, async () => {
    await page.evaluate((scale) => {
      const wait = (self.realSetTimeout = setTimeout);
      self.setTimeout = (call, time, ...values) => wait(call, time / scale, ...values);
    }, scale);
    try {
      return await work();
    } finally {
      await page.evaluate(() => (self.setTimeout = self.realSetTimeout));
    }
  });

/** Waits until a condition is met. */
async function until(condition) {
  while (!(await condition())) await new Promise((resolve) => setTimeout(resolve, 20));
}

test("progress counts the bytes of all parts", async () => {
  const { progress, code, message } = await load({ asks: false });
  assert.equal(code, undefined, message);
  const downloads = progress.filter(({ phase }) => phase === "download");
  const bytes = [...manifest.files, ...manifest.shards].reduce((sum, { bytes }) => sum + bytes, 0);
  assert.deepEqual([downloads.at(-1).loaded, downloads.at(-1).total], [bytes, bytes]);
  assert.ok(progress.some(({ phase, loaded, total }) => phase === "load" && loaded === total));
});

test("a second visit requests only the manifest, and works without a server", async () => {
  const first = await load();
  server.log.length = 0;
  const second = await load();
  assert.deepEqual(second.ids, first.ids);
  assert.deepEqual(requests().map(({ path }) => path), ["/model/bundle.json"]);
  faults = ({ path }) => (path.startsWith("/model/") ? { drop: 0 } : {});
  assert.deepEqual((await load()).ids, first.ids);
  const [entry] = await page.evaluate(() => cache.list());
  assert.deepEqual([entry.url, entry.complete, entry.bytes], [`${server.url}/model/`, true, entry.cachedBytes]);
});

test("a cached model loads and answers offline; without the cached worker and wasm module the error says so", async () => {
  const first = await load();
  assert.ok(first.ids, first.message);
  // The package stores copies of its own files in the background.
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
    assert.match(third.message, /no copy of the package's worker|the package's wasm module could not be fetched/);
  } finally {
    await context.setOffline(false);
  }
});

test("the manifest is requested again after failures, with and without storage", async () => {
  for (const options of [{}, { cache: false }]) {
    await page.evaluate(() => cache.delete());
    server.log.length = 0;
    faults = ({ path, count }) => (path === "/model/bundle.json" && count < 2 ? { drop: 0 } : {});
    const { loaded, message } = await load({ ...options, asks: false });
    assert.ok(loaded, message);
    assert.equal(requests().filter(({ path }) => path === "/model/bundle.json").length, 3);
  }
});

test("an invalid manifest fails with a typed error", async () => {
  for (const text of ["null", "{}", '{"files": [null], "shards": []}', '{"files": [], "shards": [{"file": "../x"}]}', "not JSON"]) {
    writeFileSync(join(odd, "bundle.json"), text);
    assert.equal((await load({}, page, "/odd/")).code, "config", text);
  }
});

test("a broken connection resumes where it broke", async () => {
  // The first files break three times, each time at another byte, and late enough for the browser to read what was sent.
  const first = shards().slice(0, 12);
  faults = ({ path, count }) => (first.includes(path) && count < 3 ? { drop: 10_000 + 1000 * count, linger: 300 } : {});
  const { ids, message } = await load();
  assert.ok(ids, message);
  const ranges = requests().filter(({ path }) => path === shards()[0]).map(({ range }) => range);
  assert.equal(ranges.length, 4);
  assert.equal(ranges[0], undefined);
  assert.match(ranges[1], /^bytes=\d+-$/);
  assert.ok(Number(/\d+/.exec(ranges[2])[0]) > Number(/\d+/.exec(ranges[1])[0]));
});

test("servers without ranges work", async () => {
  faults = ({ path, count }) => (shards().includes(path) ? { noRanges: true, ...(count < 2 && { drop: 20_000 }) } : {});
  const { loaded, message } = await load({ asks: false });
  assert.ok(loaded, message);
});

test("an aborted load resumes the next time", async () => {
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
  const sent = requests().reduce((sum, { bytes }) => sum + bytes, 0);
  assert.ok(sent < entry.bytes - entry.cachedBytes + 100_000, `${sent} of ${entry.bytes} bytes were sent again`);
});

test("a corrupt byte is detected and repaired; if it persists, the load fails with a checksum error", async () => {
  faults = ({ path, count }) => (path === shards()[1] && count === 0 ? { corrupt: 40_000 } : {});
  assert.ok((await load({ asks: false })).loaded, "one corrupt transfer is repaired");
  await page.evaluate(() => cache.delete());
  faults = ({ path }) => (path === shards()[1] ? { corrupt: 40_000 } : {});
  const { code, message } = await load();
  assert.equal(code, "checksum");
  assert.ok(message.includes(manifest.shards[1].file), message);
});

test("errors have codes: no server, no bundle, server errors, CORS, no space", async () => {
  await withFastWorker(20, async () => {
    faults = ({ path }) => (path.startsWith("/model/") ? { drop: 0 } : {});
    assert.equal((await load()).code, "network");
    faults = () => ({});
    assert.equal((await load({}, page, "/nowhere/")).code, "http");
    assert.equal((await load({}, page, "/")).code, "http");
    assert.equal((await load({}, page, `${other.url}/model/`)).code, "cors");
  });
  const small = await launchWithQuota(`${server.url}/`, 400_000);
  const { code, message } = await load({}, small.page);
  await small.context.close();
  assert.equal(code, "quota");
  assert.match(message, /not enough space/);
});

test("a page asks once for persistent storage while it downloads", async () => {
  const counts = await page.evaluate(async () => {
    let count = 0;
    navigator.storage.persist = async () => ++count > 0;
    const counts = [];
    for (const options of [{ cache: false }, {}, {}]) {
      (await Mgm.load("/model/", options)).dispose();
      counts.push(count);
    }
    delete navigator.storage.persist;
    return counts;
  });
  assert.deepEqual(counts, [0, 1, 1]);
});

test("a server that is busy says when to ask again", async () => {
  faults = ({ path, count }) => (path === shards()[0] && count === 0 ? { status: 429, headers: { "Retry-After": "2" } } : {});
  const started = performance.now();
  const { loaded, message } = await load({ asks: false });
  assert.ok(loaded, message);
  assert.ok(performance.now() - started >= 2000);
});

test("a web page in place of a file is an error, and spoils nothing", async () => {
  for (const cache of [true, false]) {
    faults = ({ path }) => (path === shards()[0] ? { html: true } : {});
    const { code, message } = await load({ cache });
    assert.equal(code, "http");
    assert.match(message, new RegExp(`${shards()[0]}: the server sent a web page`));
    faults = () => ({});
    server.log.length = 0;
    assert.ok((await load({ cache, asks: false })).loaded);
    assert.equal(requests().filter(({ path }) => path === shards()[0]).length, 1);
  }
});

test("a cached model loads from a server that fails, that sends web pages, or that never answers", { timeout: 300_000 }, async () => {
  await page.evaluate(() => caches.delete("mgm-webgpu"));
  await withFastTimers(5, async () => {
    const { ids } = await load();
    await page.waitForFunction(async () => (await (await caches.open("mgm-webgpu")).keys()).length === 2);
    const own = ({ path }) => path === "/model/bundle.json" || path.endsWith("/worker.js") || path.endsWith(".wasm");
    for (const fault of [{ status: 500 }, { html: true }, { hang: 0 }]) {
      faults = (request) => (own(request) ? fault : {});
      const started = performance.now();
      const second = await load();
      assert.deepEqual(second.ids, ids, `${JSON.stringify(fault)}: ${second.message}`);
      assert.ok(performance.now() - started < 60_000, JSON.stringify(fault));
    }
  });
  await page.evaluate(() => caches.delete("mgm-webgpu"));
});

test("an abort takes effect at once while the worker, the wasm module or the GPU does not come", { timeout: 120_000 }, async () => {
  await page.evaluate(() => caches.delete("mgm-webgpu"));
  /** Aborts a load when it hangs. */
  const abort = async (hangs) => {
    await page.evaluate(() => {
      window.stop = new AbortController();
      window.loading = Mgm.load("/model/", { signal: stop.signal }).catch((error) => error);
    });
    await until(hangs);
    return page.evaluate(async () => {
      const aborted = performance.now();
      stop.abort();
      return { name: (await loading).name, wait: performance.now() - aborted };
    });
  };
  const check = ({ name, wait }, what) => {
    assert.equal(name, "AbortError", what);
    assert.ok(wait < 1000, `${what}: ${wait} ms`);
  };
  for (const file of ["worker.js", ".wasm"]) {
    faults = ({ path }) => (path.startsWith("/dist/") && path.endsWith(file) ? { hang: 0 } : {});
    server.log.length = 0;
    check(await abort(() => server.log.some(({ path }) => path.startsWith("/dist/") && path.endsWith(file))), file);
    server.endHanging();
  }
  faults = () => ({});
  await page.evaluate(() => (new BroadcastChannel("hangs").onmessage = () => (window.hangs = true)));
  const hang = 'GPU.prototype.requestAdapter = () => { new BroadcastChannel("hangs").postMessage(""); return new Promise(() => {}); };';
  const hangs = () => page.evaluate(() => window.hangs);
  check(await withWorker(hang, () => abort(hangs)), "the worker's adapter");
  const requestAdapter = await page.evaluateHandle(() => GPU.prototype.requestAdapter);
  await page.evaluate(`${hang} window.hangs = false;`);
  check(await abort(hangs), "the page's adapter");
  await page.evaluate((requestAdapter) => (GPU.prototype.requestAdapter = requestAdapter), requestAdapter);
});

test("a connection that stalls is replaced", { timeout: 120_000 }, async () => {
  faults = ({ path, count }) => (path === shards()[0] && count === 0 ? { hang: 10_000 } : {});
  const { loaded, message } = await withFastWorker(10, () => load({ asks: false }));
  assert.ok(loaded, message);
  assert.match(requests().filter(({ path }) => path === shards()[0])[1].range, /^bytes=\d+-$/);
});

test("downloads outlast a minute of failures, and then fail with a typed error", { timeout: 300_000 }, async () => {
  const scale = 40;
  await withFastWorker(scale, async () => {
    const { ids } = await load();
    for (const fault of [{ drop: 0 }, { status: 503 }, { hang: 0 }, { drop: 5000, noRanges: true }]) {
      await page.evaluate(() => cache.delete());
      // Half a minute without a network: the download continues.
      let began;
      const isDown = () => performance.now() - (began ??= performance.now()) < 30_000 / scale;
      faults = ({ path }) => (path === shards()[0] && isDown() ? fault : {});
      const loaded = await load();
      assert.deepEqual(loaded.ids, ids, `${JSON.stringify(fault)}: ${loaded.message}`);
      // For good.
      await page.evaluate(() => cache.delete());
      faults = ({ path }) => (path === shards()[0] ? fault : {});
      const started = performance.now();
      const { code, message } = await load();
      const waited = ((performance.now() - started) * scale) / 1000;
      assert.equal(code, "network", message);
      assert.ok(message.includes(shards()[0]), message);
      assert.ok(waited > 50, `${JSON.stringify(fault)}: failed after ${waited} s`);
    }
  });
});

test("a page that is offline for some seconds during a download, as a laptop that sleeps, resumes", { timeout: 120_000 }, async () => {
  const received = () => requests().reduce((sum, { path, bytes }) => sum + (shards().includes(path) ? bytes : 0), 0);
  const scale = 10;
  const { loaded, message } = await withFastWorker(scale, async () => {
    faults = ({ path }) => (shards().includes(path) ? { bytesPerSecond: 200_000 } : {});
    const loading = load({ asks: false });
    await until(() => received() >= 200_000);
    await context.setOffline(true);
    faults = ({ path }) => (path.startsWith("/model/") ? { drop: 0 } : {});
    await new Promise((resolve) => setTimeout(resolve, 10_000 / scale));
    await context.setOffline(false);
    faults = () => ({});
    return loading;
  });
  assert.ok(loaded, message);
  const bytes = manifest.shards.reduce((sum, { bytes }) => sum + bytes, 0);
  assert.ok(received() < 1.5 * bytes, `${received()} bytes were sent for ${bytes}`);
});

test("the worker and the wasm module are requested again after failures", { timeout: 300_000 }, async () => {
  for (const drop of [0, 20_000]) {
    await page.evaluate(() => caches.delete("mgm-webgpu"));
    faults = ({ path, count }) => (path.startsWith("/dist/") && count < 3 ? { drop } : {});
    server.log.length = 0;
    const { ids, message } = await load();
    assert.ok(ids, `${message}; requests: ${server.log.map(({ path }) => path).join(" ")}`);
  }
});

test("a worker that is slow and then fails, or whose first requests stall, is started again", { timeout: 300_000 }, async () => {
  for (const fault of [{ delay: 6000, drop: 0 }, { hang: 0 }, { hang: 20_000 }]) {
    await page.evaluate(() => caches.delete("mgm-webgpu"));
    faults = ({ path, count }) => (path === "/dist/worker.js" && count === 0 ? fault : {});
    server.log.length = 0;
    const { ids, message } = await load();
    assert.ok(ids, `${JSON.stringify(fault)}: ${message}; requests: ${server.log.map(({ path }) => path).join(" ")}`);
  }
});

test("two tabs download once", async () => {
  // The download begins to arrive when the second tab waits for its lock.
  let release;
  const held = new Promise((resolve) => (release = resolve));
  faults = ({ path }) => (shards().includes(path) ? { after: held } : {});
  const tab = await openPage(context, `${server.url}/`);
  const loading = Promise.all([load(), load({}, tab)]);
  await until(() => page.evaluate(async () => (await navigator.locks.query()).pending.some(({ name }) => name.startsWith("mgm:"))));
  release();
  const [first, second] = await loading;
  await tab.close();
  assert.ok(first.ids && second.ids, first.message ?? second.message);
  assert.deepEqual(first.ids, second.ids);
  assert.equal(requests().filter(({ path }) => path === shards()[0]).length, 1);
});

test("a component that is mounted, unmounted and mounted again, as React's StrictMode does, gets its model", { timeout: 300_000 }, async () => {
  const { ids } = await load({ cache: false });
  const tab = await openPage(context, `${server.url}/`);
  await tab.evaluate(watchWorkers);
  for (const wait of [undefined, 200]) {
    const mounts = await tab.evaluate(async (wait) => {
      const first = new AbortController();
      const aborted = Mgm.load("/model/", { signal: first.signal }).then((mgm) => mgm.dispose(), (error) => error.name);
      if (wait !== undefined) await new Promise((resolve) => setTimeout(resolve, wait));
      first.abort();
      const mgm = await Mgm.load("/model/");
      const { tokenIds } = await mgm.chat([{ role: "user", content: "Hello" }], { temperature: 0, maxNewTokens: 4 });
      mgm.dispose();
      return [(await aborted) ?? "AbortError", tokenIds];
    }, wait);
    assert.deepEqual(mounts, ["AbortError", ids], `${wait} ms`);
    // An aborted load ends its worker when that stops.
    await until(async () => isDeepStrictEqual(await held(tab), { workers: 0, locks: [] }));
  }
  await tab.close();
});

test("if a tab goes away during its download, the next one that waits continues it", { timeout: 300_000 }, async () => {
  faults = ({ path }) => (shards().includes(path) ? { bytesPerSecond: 100_000 } : {});
  const tab = await openPage(context, `${server.url}/`);
  const gone = load({}, tab).catch(() => undefined);
  await until(() => requests().some(({ path, bytes }) => shards().includes(path) && bytes > 0));
  const waiting = load();
  await tab.goto("about:blank");
  faults = () => ({});
  const { ids, message } = await waiting;
  assert.ok(ids, message);
  await gone;
  await tab.close();
});

test("a page that comes back from the history, where it was frozen, continues or starts again", { timeout: 300_000 }, async (t) => {
  const other = await launch({ ignoreDefaultArgs: ["--disable-back-forward-cache"] });
  try {
    const tab = await openPage(other, `${server.url}/`);
    /** Loads the model and asks, unless the page has begun to. */
    const ask = () =>
      tab.evaluate(async () => {
        self.mgm ??= Mgm.load("/model/", { onProgress: ({ loaded }) => (self.loaded = loaded) });
        self.answer ??= mgm.then((mgm) => mgm.chat([{ role: "user", content: "Hello" }], { temperature: 0, maxNewTokens: 256, ignoreEos: true }));
        return (await answer).tokenIds;
      });
    /** Leaves the page for another one, and returns. */
    const leave = async (when) => {
      await tab.goto(`${server.url}/models.json`);
      // `goBack` waits for an event that a page of the cache does not send in Firefox.
      await tab.evaluate(() => void setTimeout(() => history.back()));
      await tab.waitForFunction("window.ready");
      t.diagnostic(`${when}: ${(await tab.evaluate(() => "mgm" in self)) ? "from the back/forward cache" : "loaded again"}`);
    };
    // In a download.
    faults = ({ path }) => (shards().includes(path) ? { bytesPerSecond: 100_000 } : {});
    const first = ask().catch(() => undefined);
    await tab.waitForFunction(() => self.loaded > 100_000);
    await leave("in a download");
    faults = () => ({});
    const ids = await ask();
    assert.equal(ids.length, 256);
    await first;
    // In an answer, and between two.
    for (const when of ["in an answer", "at rest"]) {
      await tab.evaluate(async (when) => {
        const stream = (await mgm).chat([{ role: "user", content: "Hello" }], { temperature: 0, maxNewTokens: 256, ignoreEos: true });
        self.answer = stream.finished();
        // A loop that ends early would stop the answer.
        const deltas = stream[Symbol.asyncIterator]();
        while ((await deltas.next()).value.type !== "text");
        if (when === "at rest") self.answer = void (await self.answer);
      }, when);
      await leave(when);
      assert.deepEqual(await ask(), ids, when);
    }
  } finally {
    await other.close();
  }
});

test("without the cache nothing is stored", async () => {
  const { ids, stored } = await load({ cache: false });
  assert.ok(ids);
  assert.equal(stored, false);
  assert.deepEqual(await page.evaluate(() => cache.list()), []);
  assert.equal((await load({ asks: false })).stored, true);
});

test("a browser that refuses to store files loads the model without, and says so", async () => {
  const { ids } = await load({ cache: false });
  const refuse = (name) => `() => Promise.reject(new DOMException("refused by the test", "${name}"))`;
  const refusals = {
    "no folder": `StorageManager.prototype.getDirectory = ${refuse("SecurityError")};`,
    "no storage manager": "delete WorkerNavigator.prototype.storage;",
    "a folder that cannot be created": `FileSystemDirectoryHandle.prototype.getDirectoryHandle = ${refuse("UnknownError")};`,
    "no writable files": "delete FileSystemFileHandle.prototype.createWritable;",
    "no access handles": `FileSystemFileHandle.prototype.createSyncAccessHandle = ${refuse("UnknownError")};`,
    "no locks": `LockManager.prototype.request = ${refuse("SecurityError")};`,
  };
  for (const [name, script] of Object.entries(refusals)) {
    await page.evaluate(() => cache.delete());
    // All of them load the same way.
    const asks = name === "no folder";
    const { loaded, stored, message, ...answer } = await withWorker(script, () => load({ asks }));
    assert.deepEqual([loaded, stored], [true, false], `${name}: ${message}`);
    if (asks) assert.deepEqual(answer.ids, ids);
  }
  const refused = await page.evaluate(async () => {
    const { getDirectory } = StorageManager.prototype;
    StorageManager.prototype.getDirectory = () => Promise.reject(new DOMException("refused by the test", "SecurityError"));
    const result = [(await Mgm.support()).canStore, await cache.list(), await cache.delete(), (await Mgm.inspect("/model/")).imageGeneration];
    StorageManager.prototype.getDirectory = getDirectory;
    return [...result, (await Mgm.support()).canStore];
  });
  assert.deepEqual(refused, [false, [], undefined, false, true]);
});

test("after the browser evicted or damaged some files, only those are downloaded again", async () => {
  const { ids } = await load();
  const { file, sha256 } = manifest.shards[1];
  /** Deletes or overwrites files of the bundle's folder. */
  const change = (changes) =>
    page.evaluate(async (changes) => {
      const root = await (await navigator.storage.getDirectory()).getDirectoryHandle("mgm");
      for await (const folder of root.values()) {
        for (const [name, text] of Object.entries(changes)) {
          if (text === null) await folder.removeEntry(name);
          else {
            const writable = await (await folder.getFileHandle(name)).createWritable();
            await writable.write(text);
            await writable.close();
          }
        }
      }
    }, changes);
  for (const changes of [{ [sha256]: null }, { "bundle.json": null }, { "source.json": null }, { "source.json": "{" }, { "bundle.json": "{" }]) {
    await change(changes);
    server.log.length = 0;
    const asks = sha256 in changes;
    const again = await load({ asks });
    assert.ok(again.loaded, again.message);
    if (asks) assert.deepEqual(again.ids, ids);
    const shards = sha256 in changes ? [`/model/${file}`] : [];
    assert.deepEqual(requests().map(({ path }) => path), ["/model/bundle.json", ...shards], JSON.stringify(changes));
    const [entry] = await page.evaluate(() => cache.list());
    assert.ok(entry.complete, JSON.stringify(changes));
  }
  // Without a server, the error names what is missing.
  await change({ [sha256]: null });
  faults = ({ path }) => (path.startsWith("/model/") ? { drop: 0 } : {});
  const { code, message } = await withFastWorker(20, load);
  assert.equal(code, "network");
  assert.match(message, new RegExp(`/model/${file}`));
});

test("files that the user chose load", async () => {
  const files = [manifest.files, manifest.shards].flat().map(({ file }) => file).concat("bundle.json");
  const result = await page.evaluate(async (names) => {
    const files = await Promise.all(names.map(async (name) => new File([await (await fetch(`/model/${name}`)).blob()], name)));
    const mgm = await Mgm.load(files);
    const answer = await mgm.chat([{ role: "user", content: "Hello" }], { temperature: 0, maxNewTokens: 4 });
    const code = await Mgm.load(files.slice(1)).catch((error) => error.code);
    return { ids: answer.tokenIds, code };
  }, files);
  assert.deepEqual(result.ids, (await load()).ids);
  assert.ok(["missing-file", "config"].includes(result.code), result.code);
  assert.ok(expected("no-image"));
});

test("a tuning is stored with its device; a tuning of another device or a damaged one is ignored", async () => {
  const plain = await load();
  const stored = await page.evaluate(async () => {
    const tunings = [];
    const mgm = await Mgm.load("/model/", { onProgress: (progress) => progress.phase === "tune" && tunings.push(progress) });
    await mgm.tune({ int8: true });
    await mgm.tune();
    mgm.dispose();
    if (tunings.length === 0 || tunings.some((progress) => "total" in progress)) throw new Error(JSON.stringify(tunings));
    const folder = await (await navigator.storage.getDirectory()).getDirectoryHandle("mgm");
    return (await (await folder.getFileHandle("tuning.json")).getFile()).text();
  });
  const { device, tuning } = JSON.parse(stored);
  assert.ok(device.includes(await page.evaluate(() => navigator.userAgent)), device);
  const { products } = JSON.parse(tuning);
  assert.ok(products.length > 0 && products.every(({ kernel, microseconds }) => kernel && microseconds > 0), tuning);
  // Of this device, of another, with unknown kernels, not JSON.
  const impossible = tuning.replaceAll(/"kernel":("\w+"|\{[^}]*\}+)/g, '"kernel":{"uniform":0}');
  assert.notEqual(impossible, tuning);
  for (const text of [stored, JSON.stringify({ device: "another", tuning }), JSON.stringify({ device, tuning: impossible }), "{", "null"]) {
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

test("the first load on a GPU measures kernels, once; one on a software adapter or with tune: false does not", { timeout: 1_200_000 }, async () => {
  const plain = await load();
  // A worker that does not know that the adapter is a software one.
  const hidden = 'Object.defineProperty(GPUAdapterInfo.prototype, "isFallbackAdapter", { get: () => false });\n';
  writeFileSync(join(odd, "worker.js"), hidden + readFileSync(join(web, "dist/worker.js"), "utf8"));
  /** Loads a model, asks a question and returns the answer and `tuning.json` when that has not changed for some seconds. */
  const loadAndWait = (workerUrl, options) =>
    page.evaluate(
      async ({ workerUrl, options }) => {
        env.workerUrl = workerUrl;
        const mgm = await Mgm.load("/model/", options);
        // Interrupts the measurements.
        const { tokenIds: ids } = await mgm.chat([{ role: "user", content: "Hello" }], { temperature: 0, maxNewTokens: 4 });
        const folder = await (await navigator.storage.getDirectory()).getDirectoryHandle("mgm");
        const read = async () => {
          const file = await folder.getFileHandle("tuning.json").then((handle) => handle.getFile(), () => undefined);
          return file && { text: await file.text(), lastModified: file.lastModified };
        };
        let stored = await read();
        for (let unchanged = 0; unchanged < 4; ) {
          await new Promise((resolve) => setTimeout(resolve, 1000));
          const next = await read();
          unchanged = next?.lastModified === stored?.lastModified ? unchanged + 1 : 0;
          stored = next;
        }
        mgm.dispose();
        env.workerUrl = undefined;
        return { ids, stored };
      },
      { workerUrl, options },
    );
  assert.deepEqual(await loadAndWait(undefined, {}), { ids: plain.ids, stored: undefined });
  assert.deepEqual(await loadAndWait("/odd/worker.js", { tune: false }), { ids: plain.ids, stored: undefined });
  const first = await loadAndWait("/odd/worker.js", {});
  assert.deepEqual(first.ids, plain.ids);
  const { products, unmeasured } = JSON.parse(JSON.parse(first.stored.text).tuning);
  console.log(`${products.length} products measured, ${unmeasured.length} left`);
  const rows = [...products, ...unmeasured].map(({ m }) => m);
  assert.ok(rows.includes(1) && rows.includes(512), first.stored.text);
  assert.deepEqual(await loadAndWait("/odd/worker.js", {}), { ids: plain.ids, stored: first.stored });
});
