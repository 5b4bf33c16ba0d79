// The package as others install it: the contents of the tarball, a Vite project, a plain import in Node.js, and a page that imports it from
// another origin. tests/bundlers has more bundlers.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { gzipSync } from "node:zlib";
import { bundle, expected, launch, root, web } from "./browser.mjs";
import { install, pack } from "./package.mjs";
import { serve } from "./server.mjs";

const golden = expected("no-image").turns[0];
let folder, context, packed;

before(async () => {
  folder = mkdtempSync(join(tmpdir(), "mgm-package-"));
  packed = pack(folder);
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
  const chat = mgm.chat(messages, { temperature: 0, maxNewTokens: 8 });
  for await (const delta of chat) if (delta.type === "text") document.body.append(delta.text);
  document.title = (await chat).tokenIds.join();
}
run().catch((error: unknown) => (document.title = String(error)));
`;

/** What snippets without an import continue from. */
const SNIPPET_GLOBALS = `
import type { Mgm } from "mgm-webgpu";
declare global {
  const mgm: Mgm;
  const context: CanvasRenderingContext2D;
  const image: HTMLImageElement;
}
`;

/** The TypeScript code of the documents and of the package's own documentation. */
function snippets() {
  const documents = [join(root, "README.md"), join(web, "README.md"), join(web, "dist/index.d.ts")];
  return documents.flatMap((file) => {
    const text = readFileSync(file, "utf8").replaceAll(/^ \* ?/gm, "");
    const found = [...text.matchAll(/```ts\n(.*?)```/gs)].map(([, code]) => code);
    assert.ok(found.length > 0, `${file} has no snippet`);
    return found;
  });
}

/** The title of the page at `url` once it is no longer "waiting". */
async function titleOf(url) {
  const page = await context.newPage();
  await page.goto(`${url}/?question=${encodeURIComponent(golden.question)}`);
  await page.waitForFunction(() => document.title !== "waiting", undefined, { timeout: 120_000 });
  const title = await page.title();
  await page.close();
  return title;
}

test("the tarball has the built files, the types, the licences, and the metadata of a published package", () => {
  const { files, metadata } = packed;
  for (const file of ["README.md", "LICENSE-MIT", "LICENSE-APACHE", "dist/index.js", "dist/index.d.ts", "dist/worker.js", "dist/mgm_web_bg.wasm"]) {
    assert.ok(files.includes(file), `${file} is missing`);
  }
  assert.deepEqual(files.filter((file) => !/^(dist\/[\w-]+\.(js|js\.map|d\.ts|wasm)|README\.md|LICENSE-\w+|package\.json)$/.test(file)), []);
  for (const target of Object.values(metadata.exports).flatMap((entry) => (typeof entry === "string" ? [entry] : Object.values(entry)))) {
    assert.ok(files.includes(target.replace("./", "")), `exports name ${target}`);
  }
  for (const field of ["repository", "homepage", "bugs", "author", "license", "engines", "keywords"]) assert.ok(metadata[field], field);
  assert.deepEqual(metadata.dependencies, undefined);
});

test("a fresh Vite project installs the tarball, type-checks the documents' snippets, builds and answers", { timeout: 600_000 }, async () => {
  const project = join(folder, "vite");
  mkdirSync(project);
  const run = (command, ...args) => execFileSync(command, args, { cwd: project, stdio: ["ignore", "ignore", "inherit"] });
  writeFileSync(join(project, "package.json"), JSON.stringify({ name: "fresh", private: true, type: "module" }));
  writeFileSync(join(project, "index.html"), '<!doctype html><title>waiting</title><script type="module" src="main.ts"></script>');
  writeFileSync(join(project, "main.ts"), MAIN);
  for (const [index, code] of snippets().entries()) writeFileSync(join(project, `snippet-${index}.ts`), `${code}\nexport {};\n`);
  writeFileSync(join(project, "globals.d.ts"), SNIPPET_GLOBALS);
  const types = (options) => JSON.stringify({
    compilerOptions: { strict: true, noEmit: true, target: "ES2022", module: "ESNext", moduleResolution: "bundler", types: [], ...options },
  });
  writeFileSync(join(project, "tsconfig.json"), types({}));
  // The package's own declarations too, with an old library.
  writeFileSync(join(project, "tsconfig.old.json"), types({ lib: ["ES2020", "DOM"], skipLibCheck: false }));
  install(project, "--save-dev", "vite", "typescript", packed.tarball);
  run("npx", "tsc");
  run("npx", "tsc", "--project", "tsconfig.old.json");
  run("npx", "vite", "build", "--logLevel", "error");
  const server = await serve({ "/": join(project, "dist"), "/model/": bundle("no-image", "f32") });
  assert.equal(await titleOf(server.url), golden.greedy_ids.slice(0, 8).join());
  await server.close();
});

test("a plain import in Node.js works, and says that it is not a browser", () => {
  const project = join(folder, "node");
  mkdirSync(join(project, "node_modules/mgm-webgpu"), { recursive: true });
  execFileSync("tar", ["xzf", packed.tarball, "--strip-components=1", "-C", join(project, "node_modules/mgm-webgpu")]);
  writeFileSync(join(project, "main.mjs"), `
    import { bundleUrl, env, Mgm } from "mgm-webgpu";
    const code = (call) => Promise.resolve().then(call).then(() => "none", (error) => \`\${error.name} \${error.code}\`);
    env.hubUrl = "https://hub.example/";
    console.log(JSON.stringify({
      support: await Mgm.support(),
      codes: [await code(() => Mgm.load("https://example.org/")), await code(() => Mgm.inspect("models/")), await code(() => Mgm.inspect("http://localhost:9/")), await code(() => bundleUrl("hf:owner"))],
      urls: ["hf:owner/name", "hf:owner/name@v1.0/sub/folder", "hf:owner/name@refs%2Fpr%2F1", "https://example.org/m/bundle.json"].map((url) => bundleUrl(url)),
      worker: import.meta.resolve("mgm-webgpu/worker.js"),
      wasm: import.meta.resolve("mgm-webgpu/mgm_web_bg.wasm"),
    }));
  `);
  const result = JSON.parse(execFileSync(process.execPath, ["main.mjs"], { cwd: project, encoding: "utf8" }));
  const { supported, code, reason } = result.support;
  assert.deepEqual([supported, code, /not a browser/.test(reason)], [false, "unsupported-browser", true]);
  assert.deepEqual(result.codes, ["MgmError unsupported-browser", "MgmError invalid-argument", "MgmError network", "MgmError invalid-argument"]);
  assert.deepEqual(result.urls, [
    "https://hub.example/owner/name/resolve/main/", "https://hub.example/owner/name/resolve/v1.0/sub/folder/",
    "https://hub.example/owner/name/resolve/refs%2Fpr%2F1/", "https://example.org/m/",
  ]);
  assert.match(result.worker, /dist\/worker\.js$/);
  assert.match(result.wasm, /dist\/mgm_web_bg\.wasm$/);
});

test("a plain script imports the package from another origin, and a model from a Hub", { timeout: 120_000 }, async () => {
  const headers = { "Access-Control-Allow-Origin": "*" };
  const cdn = await serve({ "/": join(web, "dist") }, { headers });
  const hub = await serve({ "/owner/name/resolve/v1/folder/": bundle("no-image", "f32") }, { headers });
  const site = join(folder, "site");
  mkdirSync(site);
  const script = MAIN.replace('"mgm-webgpu"', `"${cdn.url}/index.js"`)
    .replace("{ Mgm,", "{ Mgm, env,")
    .replace('Mgm.load("/model/")', `(env.hubUrl = "${hub.url}", Mgm.load("hf:owner/name@v1/folder"))`)
    .replaceAll(/, type Message|: Message\[\]|: Promise<void>|: unknown/g, "");
  writeFileSync(join(site, "index.html"), `<!doctype html><title>waiting</title><body><script type="module">${script}</script>`);
  const server = await serve({ "/": site });
  assert.equal(await titleOf(server.url), golden.greedy_ids.slice(0, 8).join());
  for (const { close } of [server, cdn, hub]) await close();
});

test("a page without a bundler uses copies of the files at other addresses", { timeout: 120_000 }, async () => {
  const site = join(folder, "moved");
  mkdirSync(site);
  cpSync(join(web, "dist/index.js"), join(site, "package.js"));
  cpSync(join(web, "dist/worker.js"), join(site, "background.js"));
  const script = MAIN.replace('"mgm-webgpu"', '"./package.js"')
    .replace("{ Mgm,", "{ Mgm, env,")
    .replace("const mgm", 'env.workerUrl = "background.js";\n  env.wasmUrl = new URL("/files/mgm_web_bg.wasm", location.href);\n  const mgm')
    .replaceAll(/, type Message|: Message\[\]|: Promise<void>|: unknown/g, "");
  writeFileSync(join(site, "index.html"), `<!doctype html><title>waiting</title><body><script type="module">${script}</script>`);
  const server = await serve({ "/": site, "/files/": join(web, "dist"), "/model/": bundle("no-image", "f32") });
  assert.equal(await titleOf(server.url), golden.greedy_ids.slice(0, 8).join());
  await server.close();
});

test("the package is small", (t) => {
  const zipped = (file) => gzipSync(readFileSync(join(web, "dist", file)), { level: 9 }).length;
  const [wasm, script] = [zipped("mgm_web_bg.wasm"), zipped("index.js") + zipped("worker.js")];
  t.diagnostic(`gzipped: wasm ${wasm} bytes, JavaScript ${script} bytes`);
  assert.ok(wasm <= 1_900_000 && script <= 60_000);
});
