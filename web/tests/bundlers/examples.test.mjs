// `npm pack` builds the package, every example builds with the tarball, and the pages answer in Chromium: as production builds, and from
// development servers. The examples' dependencies come from the registry, so this takes minutes.

import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { build } from "esbuild";
import { held, launch, root, watchWorkers, web } from "../browser.mjs";
import { install } from "../package.mjs";
import { serve } from "../server.mjs";

const image = join(root, "pocket/examples/zebras.png");
const pocket = join(root, "models/pocket");
let folder, context, tarball;

before(async () => {
  folder = mkdtempSync(join(tmpdir(), "mgm-examples-"));
  // With its script `prepack`, as in a release.
  execFileSync("npm", ["pack", "--loglevel", "error", "--pack-destination", folder], { cwd: web, stdio: ["ignore", "ignore", "inherit"] });
  tarball = join(folder, readdirSync(folder).find((file) => file.endsWith(".tgz")));
  context = await launch();
});

after(async () => {
  await context?.close();
  rmSync(folder, { recursive: true, force: true });
});

/** Copies an example and installs its dependencies, with the packed package in place of the published one. */
function project(name) {
  const path = join(folder, name);
  cpSync(join(web, "examples", name), path, { recursive: true, filter: (path) => !/node_modules|\.next$|dist$|public$|package-lock/.test(path) });
  const manifest = JSON.parse(readFileSync(join(path, "package.json")));
  manifest.dependencies["mgm-webgpu"] = `file:${tarball}`;
  writeFileSync(join(path, "package.json"), JSON.stringify(manifest));
  install(path);
  cpSync(pocket, join(path, "public/models/pocket"), { recursive: true });
  return path;
}

const env = { ...process.env, NEXT_TELEMETRY_DISABLED: "1" };
const run = (cwd, ...command) => execFileSync(command[0], command.slice(1), { cwd, stdio: ["ignore", "ignore", "inherit"], env });

/** Runs a server of a project, which gets `--port N` appended, and work with its URL. */
async function withServer(cwd, script, options, work) {
  const port = await freePort();
  const server = spawn(process.execPath, [join("node_modules", script), ...options, "--port", String(port)], { cwd, stdio: ["ignore", "ignore", "inherit"], env });
  try {
    await reachable(`http://localhost:${port}/`);
    return await work(`http://localhost:${port}/`);
  } finally {
    server.kill();
  }
}

/** Asks in the page about an image, if it takes one, and returns the answer when `done` returns it. */
async function ask(url, { withImage = true, done }) {
  const page = await context.newPage();
  const errors = [];
  page.on("pageerror", (error) => errors.push(String(error)));
  await page.addInitScript(watchWorkers);
  await page.goto(url);
  if (withImage) await page.getByLabel("Image").setInputFiles(image);
  await page.getByRole("button", { name: "Ask" }).and(page.locator(":enabled")).click({ timeout: 120_000 });
  const text = await page.waitForFunction(done, undefined, { timeout: 240_000 }).then((handle) => handle.jsonValue());
  // One, although React's StrictMode mounts the component twice.
  assert.deepEqual(await held(page), { workers: 1, locks: [] });
  await page.close();
  assert.deepEqual(errors, []);
  return text;
}

/**
 * Asks in two visits, the second without a server: the site comes from the browser's cache, which its headers allow, and the model from where
 * the package stored it.
 */
async function visitTwice(folders, options) {
  const server = await serve(folders, { headers: { "Cache-Control": "max-age=3600" } });
  const answer = await ask(`${server.url}/`, options);
  await server.close();
  assert.equal(await ask(`${server.url}/`, options), answer);
  return answer;
}

const answered = () => !document.querySelector("button").disabled && document.getElementById("answer").textContent.trim();
const finished = () => (document.querySelector("[role=status]").textContent === "done" ? document.getElementById("answer").textContent.trim() : "");

test("plain-html answers, also without its server", { timeout: 300_000 }, async () => {
  const folders = { "/": join(web, "examples/plain-html"), "/mgm-webgpu/": join(web, "dist"), "/models/pocket/": pocket };
  assert.equal(await visitTwice(folders, { done: finished }), "bus");
});

test("vite-react answers, built, also without its server, and from the development server", { timeout: 600_000 }, async () => {
  const path = project("vite-react");
  run(path, "npm", "run", "build");
  assert.equal(await visitTwice({ "/": join(path, "dist") }, { done: answered }), "bus");
  assert.equal(await withServer(path, "vite/bin/vite.js", ["--logLevel", "error"], (url) => ask(url, { done: answered })), "bus");
});

test("own-worker answers, built, also without its server, and from the development server", { timeout: 600_000 }, async () => {
  const path = project("own-worker");
  run(path, "npm", "run", "build");
  const options = { withImage: false, done: finished };
  const built = await visitTwice({ "/": join(path, "dist") }, options);
  assert.notEqual(built, "");
  assert.equal(await withServer(path, "vite/bin/vite.js", ["--logLevel", "error"], (url) => ask(url, options)), built);
});

test("next answers, built with Turbopack and with webpack, and from the development server", { timeout: 1_200_000 }, async () => {
  const path = project("next");
  for (const bundler of ["--turbopack", "--webpack"]) {
    rmSync(join(path, ".next"), { recursive: true, force: true });
    run(path, process.execPath, "node_modules/next/dist/bin/next", "build", bundler);
    assert.equal(await withServer(path, "next/dist/bin/next", ["start"], (url) => ask(url, { done: answered })), "bus", bundler);
    // The build's folder must not leak into what the page loads.
    assert.equal(leaks(path), false, bundler);
  }
  assert.equal(await withServer(path, "next/dist/bin/next", ["dev"], (url) => ask(url, { done: answered })), "bus");
});

test("an esbuild project answers with the package's two files next to its output", { timeout: 300_000 }, async () => {
  const path = join(folder, "esbuild");
  const site = join(path, "site");
  mkdirSync(site, { recursive: true });
  writeFileSync(join(path, "package.json"), JSON.stringify({ private: true, type: "module" }));
  install(path, tarball);
  writeFileSync(join(path, "main.js"), `
    import { Mgm } from "mgm-webgpu";
    const mgm = await Mgm.load("/models/pocket/");
    const [status, answer] = [document.querySelector("[role=status]"), document.getElementById("answer")];
    answer.textContent = (await mgm.chat([{ role: "user", content: "What is a bus?" }], { maxTokens: 8 })).text;
    status.textContent = "done";
  `);
  writeFileSync(join(site, "index.html"), '<!doctype html><p role="status"></p><p id="answer"></p><button>Ask</button><script type="module" src="main.js"></script>');
  await build({ absWorkingDir: path, entryPoints: ["main.js"], bundle: true, format: "esm", outdir: site });
  for (const file of ["worker.js", "mgm_web_bg.wasm"]) cpSync(join(path, "node_modules/mgm-webgpu/dist", file), join(site, file));
  const server = await serve({ "/": site, "/models/pocket/": pocket });
  assert.notEqual(await ask(`${server.url}/`, { withImage: false, done: finished }), "");
  await server.close();
});

function leaks(path) {
  try {
    execFileSync("grep", ["-rlF", "--include=*.js", `file://${path}`, join(path, ".next/static")], { stdio: ["ignore", "pipe", "ignore"] });
    return true;
  } catch {
    return false;
  }
}

function freePort() {
  return new Promise((resolve) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });
}

async function reachable(url) {
  for (let attempt = 0; attempt < 240; attempt++) {
    if (await fetch(url).then(({ ok }) => ok, () => false)) return;
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
  throw new Error(`${url} does not respond`);
}
