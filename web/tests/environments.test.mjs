// Pages and browsers that restrict what the package can use: the first browsers with WebGPU, sandboxed frames, content security
// policies, Trusted Types, a base address.

import assert from "node:assert/strict";
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { bundle, expected, launch, web } from "./browser.mjs";
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

async function titleOf(url) {
  const page = await context.newPage();
  await page.goto(url);
  await page.waitForFunction(() => document.title !== "waiting", undefined, { timeout: 240_000 });
  const title = await page.title();
  await page.close();
  return title;
}

test("the first browsers with WebGPU: no GPUAdapter.info and no AbortSignal.any", { timeout: 900_000 }, async () => {
  const missing = "delete GPUAdapter.prototype.info; delete AbortSignal.any;";
  cpSync(join(web, "dist"), join(folder, "old-dist"), { recursive: true });
  for (const file of ["index.js", "worker.js"]) {
    const path = join(folder, "old-dist", file);
    writeFileSync(path, missing + readFileSync(path, "utf8"));
  }
  assert.equal(await titleOf(write("old.html", { module: "/old-dist/index.js" })), ids);
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
  assert.match(await titleOf(write("refused.html", { head: refused })), /^MgmError network: .*worker\.js did not start: .*TrustedScriptURL/);
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
  assert.match(await titleWith(own.replace(" 'wasm-unsafe-eval'", "")), /^MgmError /);
  const other = `default-src 'none'; script-src 'nonce-test' 'wasm-unsafe-eval' ${cdn.url}; connect-src 'self' ${cdn.url}; worker-src blob:`;
  assert.equal(await titleWith(other, `${cdn.url}/index.js`), ids);
});

test("a base address, and a worker that does not exist", { timeout: 900_000 }, async () => {
  assert.equal(await titleOf(write("pages/base.html", { head: '<base href="/base/">', model: "there/" })), ids);
  const before = 'const { env } = await import("/dist/index.js"); env.workerUrl = "/nowhere/worker.js";';
  assert.match(await titleOf(write("nowhere.html", { before })), /^MgmError network: .*\/nowhere\/worker\.js did not start/);
});
