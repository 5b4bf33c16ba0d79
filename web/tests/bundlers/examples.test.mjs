// Every example builds with the packed package and answers in Chromium. They are installed from the registry, so this takes minutes.

import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { launch, root, web } from "../browser.mjs";
import { pack } from "../package.mjs";
import { serve } from "../server.mjs";

const image = join(root, "pocket/examples/zebras.png");
const pocket = join(root, "models/pocket");
let folder, context, packed;

before(async () => {
  folder = mkdtempSync(join(tmpdir(), "mgm-examples-"));
  packed = pack(folder);
  context = await launch();
});

after(async () => {
  await context?.close();
  rmSync(folder, { recursive: true, force: true });
});

/** Copies an example and installs its dependencies, with the packed package in place of the published one. */
function install(name, ...more) {
  const project = join(folder, name);
  cpSync(join(web, "examples", name), project, { recursive: true, filter: (path) => !/node_modules|\.next|dist$/.test(path) });
  const manifest = JSON.parse(readFileSync(join(project, "package.json")));
  manifest.dependencies["mgm-webgpu"] = `file:${packed.tarball}`;
  writeFileSync(join(project, "package.json"), JSON.stringify(manifest));
  const run = (...command) => execFileSync(command[0], command.slice(1), {
    cwd: project, stdio: ["ignore", "ignore", "inherit"], env: { ...process.env, NEXT_TELEMETRY_DISABLED: "1" },
  });
  run("npm", "install", "--silent", "--no-fund", "--no-audit", ...more);
  return { project, run };
}

/** Asks in the page about an image, if it takes one, and returns the answer when its status is `done`. */
async function ask(url, { withImage = true, done }) {
  const page = await context.newPage();
  const errors = [];
  page.on("pageerror", (error) => errors.push(String(error)));
  await page.goto(url);
  if (withImage) await page.getByLabel("Image").setInputFiles(image);
  await page.getByRole("button", { name: "Ask" }).and(page.locator(":enabled")).click({ timeout: 120_000 });
  const text = await page.waitForFunction(done, undefined, { timeout: 240_000 }).then((handle) => handle.jsonValue());
  await page.close();
  assert.deepEqual(errors, []);
  return text;
}

const answered = () => !document.querySelector("button").disabled && document.getElementById("answer").textContent.trim();
const finished = () => (document.querySelector("[role=status]").textContent === "done" ? document.getElementById("answer").textContent.trim() : "");

test("plain-html answers", { timeout: 300_000 }, async () => {
  const server = await serve({ "/": join(web, "examples/plain-html"), "/mgm-webgpu/": join(web, "dist"), "/models/pocket/": pocket });
  assert.equal(await ask(`${server.url}/`, { done: finished }), "bus");
  await server.close();
});

test("vite-react builds and answers", { timeout: 600_000 }, async () => {
  const { project, run } = install("vite-react");
  run("npm", "run", "build");
  const server = await serve({ "/": join(project, "dist"), "/models/pocket/": pocket });
  assert.equal(await ask(`${server.url}/`, { done: answered }), "bus");
  await server.close();
});

test("own-worker builds and answers", { timeout: 600_000 }, async () => {
  const { project, run } = install("own-worker");
  run("npm", "run", "build");
  const server = await serve({ "/": join(project, "dist"), "/models/pocket/": pocket });
  assert.notEqual(await ask(`${server.url}/`, { withImage: false, done: finished }), "");
  await server.close();
});

test("next builds with Turbopack and with webpack, and answers", { timeout: 1_200_000 }, async () => {
  const { project, run } = install("next");
  cpSync(pocket, join(project, "public/models/pocket"), { recursive: true });
  for (const bundler of ["--turbopack", "--webpack"]) {
    rmSync(join(project, ".next"), { recursive: true, force: true });
    run("npx", "next", "build", bundler);
    const port = await freePort();
    const server = spawn(process.execPath, ["node_modules/next/dist/bin/next", "start", "--port", String(port)], { cwd: project, stdio: "ignore" });
    try {
      await reachable(`http://localhost:${port}/`);
      assert.equal(await ask(`http://localhost:${port}/`, { done: answered }), "bus", bundler);
    } finally {
      server.kill();
    }
    // The build's folder must not leak into what the page loads.
    assert.equal(leaks(project), false, bundler);
  }
});

function leaks(project) {
  try {
    execFileSync("grep", ["-rlF", "--include=*.js", `file://${project}`, join(project, ".next/static")], { stdio: ["ignore", "pipe", "ignore"] });
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
  for (let attempt = 0; attempt < 120; attempt++) {
    if (await fetch(url).then(({ ok }) => ok, () => false)) return;
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
  throw new Error(`${url} does not respond`);
}
