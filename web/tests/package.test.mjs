// The package as others install it: `npm pack`, a fresh Vite project, its build in the browser. And from another origin, as from a CDN.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { gzipSync } from "node:zlib";
import { bundle, expected, launch, web } from "./browser.mjs";
import { serve } from "./server.mjs";

const golden = expected("no-image").turns[0];
let folder, context;

before(async () => {
  folder = mkdtempSync(join(tmpdir(), "mgm-package-"));
  context = await launch();
});

after(async () => {
  await context?.close();
  rmSync(folder, { recursive: true, force: true });
});

const MAIN = `
import { Mgm, type Message } from "mgm-webgpu";
const messages: Message[] = [{ role: "user", content: new URLSearchParams(location.search).get("question") ?? "" }];
async function run(): Promise<void> {
  const mgm = await Mgm.load("/model/");
  const answer = mgm.chat(messages, { temperature: 0, maxNewTokens: 8 });
  for await (const { text } of answer) document.body.append(text);
  document.title = (await answer.finished()).tokenIds.join();
}
run().catch((error: unknown) => (document.title = String(error)));
`;

/** What the page at `url` has for a title in the end. */
async function titleOf(url) {
  const page = await context.newPage();
  await page.goto(`${url}/?question=${encodeURIComponent(golden.question)}`);
  await page.waitForFunction(() => document.title !== "waiting", undefined, { timeout: 120_000 });
  const title = await page.title();
  await page.close();
  return title;
}

test("a fresh Vite project installs the tarball, type-checks, builds and answers", { timeout: 600_000 }, async () => {
  const run = (command, ...args) => execFileSync(command, args, { cwd: folder, stdio: ["ignore", "ignore", "inherit"] });
  execFileSync("npm", ["pack", "--silent", "--pack-destination", folder], { cwd: web, stdio: ["ignore", "ignore", "inherit"] });
  const tarball = readdirSync(folder).find((name) => name.endsWith(".tgz"));
  writeFileSync(join(folder, "package.json"), JSON.stringify({ name: "fresh", private: true, type: "module" }));
  writeFileSync(join(folder, "index.html"), '<!doctype html><title>waiting</title><script type="module" src="main.ts"></script>');
  writeFileSync(join(folder, "main.ts"), MAIN);
  writeFileSync(
    join(folder, "tsconfig.json"),
    JSON.stringify({ compilerOptions: { strict: true, noEmit: true, target: "ES2022", module: "ESNext", moduleResolution: "bundler", types: [] } }),
  );
  run("npm", "install", "--silent", "--no-fund", "--no-audit", "--save-dev", "vite", "typescript", `./${tarball}`);
  run("npx", "tsc");
  run("npx", "vite", "build", "--logLevel", "error");
  const server = await serve({ "/": join(folder, "dist"), "/model/": bundle("no-image", "f32") });
  assert.equal(await titleOf(server.url), golden.greedy_ids.slice(0, 8).join());
  await server.close();
});

test("a plain script imports it from another origin", { timeout: 120_000 }, async () => {
  const cdn = await serve({ "/": join(web, "dist") }, { headers: { "Access-Control-Allow-Origin": "*" } });
  const site = join(folder, "site");
  mkdirSync(site);
  const script = MAIN.replace('"mgm-webgpu"', `"${cdn.url}/index.js"`).replaceAll(/, type Message|: Message\[\]|: Promise<void>|: unknown/g, "");
  writeFileSync(join(site, "index.html"), `<!doctype html><title>waiting</title><body><script type="module">${script}</script>`);
  const server = await serve({ "/": site, "/model/": bundle("no-image", "f32") });
  assert.equal(await titleOf(server.url), golden.greedy_ids.slice(0, 8).join());
  await server.close();
  await cdn.close();
});

test("it is small", (t) => {
  const zipped = (file) => gzipSync(readFileSync(join(web, "dist", file)), { level: 9 }).length;
  const [wasm, script] = [zipped("mgm_web_bg.wasm"), zipped("index.js") + zipped("worker.js")];
  t.diagnostic(`gzipped: wasm ${wasm} bytes, JavaScript ${script} bytes`);
  assert.ok(wasm <= 2_000_000 && script <= 60_000);
});
