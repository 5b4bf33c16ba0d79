// Pages and browsers that restrict what the package can use: the first browsers with WebGPU, sandboxed frames, content security
// policies, Trusted Types, a base address.

import assert from "node:assert/strict";
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { build } from "esbuild";
import { bundle, expected, isFirefox, launch, web } from "./browser.mjs";
import { serve } from "./server.mjs";

const golden = expected("no-image").turns[0];
const ids = golden.greedy_ids.slice(0, 4).join();
let folder, context, server, cdn;

before(async () => {
  folder = mkdtempSync(join(tmpdir(), "mgm-environments-"));
  const headers = { "Access-Control-Allow-Origin": "*" };
  const model = bundle("no-image", "f32");
  server = await serve({ "/": folder, "/dist/": join(web, "dist"), "/model/": model, "/base/there/": model }, { headers });
  cdn = await serve({ "/": join(web, "dist") }, { headers });
  context = await launch();
});

after(async () => {
  await context?.close();
  await server?.close();
  await cdn?.close();
  rmSync(folder, { recursive: true, force: true });
});

/** A page that loads a model, asks the golden question and sends the ids, or the error, to the top window's title. */
function write(name, { head = "", module = "/dist/index.js", model = "/model/", options = {}, before = "" } = {}) {
  const path = join(folder, name);
  mkdirSync(join(path, ".."), { recursive: true });
  writeFileSync(path, `<!doctype html>${head}<title>waiting</title><script type="module" nonce="test">
    import { Mgm } from "${module}";
    const say = (text) => (parent === self ? (document.title = text) : parent.postMessage(text, "*"));
    try {
      ${before}
      const support = await Mgm.support();
      if (!support.supported) throw new Error(support.reason);
      const mgm = await Mgm.load("${model}", ${JSON.stringify(options)});
      const { tokenIds } = await mgm.chat([{ role: "user", content: ${JSON.stringify(golden.question)} }], { temperature: 0, maxTokens: 4 });
      say(tokenIds.join());
    } catch (error) {
      say(\`\${error.name} \${error.code}: \${error.message}\`);
    }
  </script>`);
  return `${server.url}/${name}`;
}

async function titleOf(url, { mayThrow = false } = {}) {
  const page = await context.newPage();
  // Firefox also reports what a policy refused, such as the page's icon.
  const failed = new Promise((_, reject) => {
    page.on("pageerror", (error) => mayThrow || error.name === "Content-Security-Policy" || reject(error));
  });
  failed.catch(() => undefined);
  await page.goto(url);
  await Promise.race([failed, page.waitForFunction(() => document.title !== "waiting", undefined, { timeout: 120_000 })]);
  const title = await page.title();
  await page.close();
  return title;
}

test("the oldest supported browsers, without the APIs that came later", { timeout: 900_000 }, async () => {
  cpSync(join(web, "dist"), join(folder, "old-dist"), { recursive: true });
  for (const file of ["index.js", "worker.js"]) {
    const path = join(folder, "old-dist", file);
    writeFileSync(path, `${readFileSync(join(web, "tests/old-browser.js"), "utf8")}\n${readFileSync(path, "utf8")}`);
  }
  assert.equal(await titleOf(write("old.html", { module: "/old-dist/index.js" })), ids);
  // A buffer that cannot be created, in a browser without an event for that.
  const worker = join(folder, "old-dist/worker.js");
  const failing = `const { createBuffer } = GPUDevice.prototype;
    GPUDevice.prototype.createBuffer = function (buffer) { return createBuffer.call(this, { ...buffer, size: buffer.size > 1e5 ? 2 ** 50 : buffer.size }); };`;
  writeFileSync(join(folder, "old-dist/failing.js"), failing + readFileSync(worker, "utf8"));
  const before = 'const { env } = await import("/old-dist/index.js"); env.workerUrl = "/old-dist/failing.js";';
  assert.match(await titleOf(write("failing.html", { module: "/old-dist/index.js", before })), /^MgmError (gpu|out-of-memory): /);
  // Every kernel.
  const page = await context.newPage();
  await page.goto(write("old-check.html", { module: "/old-dist/index.js", before: "self.Mgm = Mgm; throw 0;" }));
  await page.waitForFunction(() => self.Mgm);
  const { wrong, software, names, keys } = await page.evaluate(async () => {
    const cases = await Mgm.selfCheck();
    const { adapter, precisions } = await Mgm.support();
    return {
      wrong: cases.filter(({ failure }) => failure), software: adapter.software, names: cases.map((checked) => checked.case), precisions,
      keys: [...Object.getOwnPropertyNames(Mgm.prototype), ...Object.getOwnPropertySymbols(Mgm.prototype).map(String)],
    };
  });
  await page.close();
  assert.deepEqual(wrong, []);
  assert.ok(software && names.length > 20, names.join());
  assert.ok(keys.includes("Symbol(Symbol.asyncDispose)") && !keys.includes("undefined"), keys.join());
});

test("WGSL without packed_4x8_integer_dot_product gets the functions that the kernels use", { timeout: 60_000 }, async () => {
  await build({ entryPoints: [join(web, "ts/webgpu.ts")], bundle: true, format: "esm", outfile: join(folder, "webgpu.js") });
  const page = await context.newPage();
  await page.goto(write("dots.html", { before: "throw 0;" }));
  const random = (count) => Array.from({ length: count }, (_, at) => (at < 8 ? [-128, 127][at % 2] : Math.floor(Math.random() * 256) - 128));
  const [a, b] = [random(256), random(256).reverse()];
  const { dots, packed } = await page.evaluate(async ({ a, b }) => {
    delete GPU.prototype.wgslLanguageFeatures;
    (await import("/webgpu.js")).adaptWebGpu();
    const device = await (await navigator.gpu.requestAdapter()).requestDevice();
    const code = `@group(0) @binding(0) var<storage, read_write> x: array<vec4<i32>, 128>;
      @compute @workgroup_size(64) fn main(@builtin(local_invocation_index) i: u32) {
        let a = pack4xI8(x[i]);
        x[i] = vec4(dot4I8Packed(a, pack4xI8(x[64 + i])), bitcast<i32>(a), 0, 0);
      }`;
    const pipeline = device.createComputePipeline({ layout: "auto", compute: { module: device.createShaderModule({ code }), entryPoint: "main" } });
    const [buffer, result] = [GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_DST | GPUBufferUsage.COPY_SRC, GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST]
      .map((usage) => device.createBuffer({ size: 2048, usage }));
    device.queue.writeBuffer(buffer, 0, new Int32Array([...a, ...b]));
    const bindGroup = device.createBindGroup({ layout: pipeline.getBindGroupLayout(0), entries: [{ binding: 0, resource: { buffer } }] });
    const encoder = device.createCommandEncoder();
    const pass = encoder.beginComputePass();
    pass.setPipeline(pipeline);
    pass.setBindGroup(0, bindGroup);
    pass.dispatchWorkgroups(1);
    pass.end();
    encoder.copyBufferToBuffer(buffer, 0, result, 0, 2048);
    device.queue.submit([encoder.finish()]);
    await result.mapAsync(GPUMapMode.READ);
    const values = [...new Int32Array(result.getMappedRange())].slice(0, 256);
    device.destroy();
    return { dots: values.filter((_, at) => at % 4 === 0), packed: values.filter((_, at) => at % 4 === 1) };
  }, { a, b });
  await page.close();
  const expected = a.map((value, at) => value * b[at]);
  assert.deepEqual(dots, Array.from({ length: 64 }, (_, at) => expected.slice(4 * at, 4 * at + 4).reduce((sum, product) => sum + product)));
  assert.deepEqual(packed, [...new Int32Array(new Int8Array(a).buffer)]);
});

test("a sandboxed frame without allow-same-origin gets an error: its workers have no WebGPU; one with it works", { timeout: 900_000 }, async () => {
  const frame = write("frame.html");
  const titles = {};
  for (const sandbox of ["allow-scripts", "allow-scripts allow-same-origin"]) {
    writeFileSync(join(folder, "sandbox.html"), `<!doctype html><title>waiting</title><script>onmessage = ({ data }) => (document.title = data)</script>
      <iframe sandbox="${sandbox}" src="${frame}"></iframe>`);
    titles[sandbox] = await titleOf(`${server.url}/sandbox.html`);
  }
  assert.match(titles["allow-scripts"], /sandboxed frame without allow-same-origin/);
  assert.equal(titles["allow-scripts allow-same-origin"], ids);
});

test("Trusted Types, from the page's origin and from another", { timeout: 900_000 }, async () => {
  const head = `<meta http-equiv="Content-Security-Policy" content="require-trusted-types-for 'script'; trusted-types mgm-webgpu">`;
  assert.equal(await titleOf(write("trusted.html", { head })), ids);
  assert.equal(await titleOf(write("trusted-cdn.html", { head, module: `${cdn.url}/index.js` })), ids);
  const refused = head.replace("trusted-types mgm-webgpu", "trusted-types others");
  assert.match(await titleOf(write("refused.html", { head: refused })), /^MgmError network: .*worker\.js did not start: .*(TrustedScriptURL|Sink type mismatch).*with Trusted Types the policy mgm-webgpu/);
});

test("a strict content security policy, with the package from the page's origin and from another", { timeout: 900_000 }, async () => {
  const titleWith = async (policy, module) => {
    const headers = { "Content-Security-Policy": policy };
    const strict = await serve({ "/": folder, "/dist/": join(web, "dist"), "/model/": bundle("no-image", "f32") }, { headers });
    const { pathname } = new URL(write("strict.html", { module }));
    const title = await titleOf(strict.url + pathname);
    await strict.close();
    return title;
  };
  const own = "default-src 'none'; script-src 'self' 'nonce-test' 'wasm-unsafe-eval'; connect-src 'self'";
  assert.equal(await titleWith(own), ids);
  assert.match(await titleWith(own.replace(" 'wasm-unsafe-eval'", "")), /^MgmError unsupported-browser: .*wasm-unsafe-eval/);
  const other = `default-src 'none'; script-src 'nonce-test' 'wasm-unsafe-eval' ${cdn.url}; connect-src 'self' ${cdn.url}; worker-src blob:`;
  assert.equal(await titleWith(other, `${cdn.url}/index.js`), ids);
});

test("a base address", { timeout: 900_000 }, async () => {
  assert.equal(await titleOf(write("pages/base.html", { head: '<base href="/base/">', model: "there/" })), ids);
});

test("a worker that does not start: the error says why, and names the address", { timeout: 300_000 }, async () => {
  writeFileSync(join(folder, "broken.js"), "this is no JavaScript");
  const csp = `<meta http-equiv="Content-Security-Policy" content="worker-src 'none'">`;
  for (const [url, head, message] of [
    ["nowhere/worker.js", "", /^MgmError http: .*\/nowhere\/worker\.js: the server responded 404/],
    ["worker.html", "", /^MgmError http: .*\/worker\.html: the server sent a web page instead of the script/],
    // Firefox does not say that a worker's script has a syntax error.
    ["broken.js", "", isFirefox ? /^MgmError network: .*\/broken\.js did not start: .*it is the package's script/ : /^MgmError network: .*\/broken\.js did not start: .*SyntaxError/],
    ["dist/worker.js", csp, /^MgmError network: .*\/dist\/worker\.js did not start: .*worker-src/],
  ]) {
    const before = `const { env } = await import("/dist/index.js"); env.workerUrl = "/${url}";`;
    assert.match(await titleOf(write("worker.html", { head, before }), { mayThrow: true }), message);
  }
});

test("support estimates whether a model fits, also on phones, which do not report their memory", { timeout: 60_000 }, async () => {
  const page = await context.newPage();
  await page.goto(write("support.html", { before: "self.Mgm = Mgm; throw 0;" }));
  await page.waitForFunction(() => self.Mgm);
  const ask = (agent, touchPoints, memory) =>
    page.evaluate(async ({ agent, touchPoints, memory }) => {
      for (const [name, value] of Object.entries({ userAgent: agent, maxTouchPoints: touchPoints, deviceMemory: memory })) {
        Object.defineProperty(navigator, name, { value, configurable: true });
      }
      // Pocket, SmolVLM's size, MGM-2B, MGM-7B, at f16.
      const results = [];
      for (const weightBytes of [30e6, 1e9, 5.6e9, 14e9]) {
        const { supported, precisions, reason = "", code, maxWeightBytes } = await Mgm.support({ weightBytes });
        results.push({ supported, precisions: precisions.join(), reason, code, maxWeightBytes });
      }
      return results;
    }, { agent, touchPoints, memory });
  const iphone = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/26.0 Mobile/15E148 Safari/604.1";
  const mac = "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/26.0 Safari/605.1.15";
  for (const phone of [await ask(iphone, 5), await ask(mac, 5)]) {
    assert.deepEqual(phone.map(({ precisions }) => precisions), ["f32,f16,q8,q4", "f16,q8,q4", "", ""]);
    assert.match(phone[2].reason, /too large for this device: its weights take at least 1736 MB, and a page here can use about 1074 MB/);
    assert.deepEqual([phone[0].maxWeightBytes, phone[2].supported, phone[2].code], [2 ** 30, false, undefined]);
  }
  assert.deepEqual((await ask(mac, 0)).map(({ precisions }) => precisions), Array(4).fill("f32,f16,q8,q4"));
  assert.deepEqual((await ask("Android", 5, 4)).map(({ precisions }) => precisions), ["f32,f16,q8,q4", "f32,f16,q8,q4", "q4", ""]);
  await page.close();
});
