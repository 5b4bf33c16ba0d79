// Bundlers that have no example: webpack, Rspack, Rollup, Parcel, and esbuild with a classic script. Each builds a page with the packed
// package; the page answers in the browser. The bundlers come from the registry.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { build } from "esbuild";
import { launch, root } from "../browser.mjs";
import { install, pack } from "../package.mjs";
import { serve } from "../server.mjs";

const BUNDLERS = ["webpack", "webpack-cli", "@rspack/core", "@rspack/cli", "rollup", "@rollup/plugin-node-resolve", "@web/rollup-plugin-import-meta-assets", "parcel"];
let folder, context, server;

before(async () => {
  folder = mkdtempSync(join(tmpdir(), "mgm-bundlers-"));
  const { tarball } = pack(folder);
  writeFileSync(join(folder, "package.json"), JSON.stringify({ name: "pages", private: true, type: "module" }));
  install(folder, tarball, ...BUNDLERS);
  writeFileSync(join(folder, "main.js"), `import { Mgm } from "mgm-webgpu";
    const run = async () => {
      const mgm = await Mgm.load("/models/pocket/", { cache: false });
      document.title = (await mgm.chat([{ role: "user", content: "What is a bus?" }], { temperature: 0, maxTokens: 6 })).text;
    };
    run().catch((error) => (document.title = \`\${error.code}: \${error.message}\`));`);
  writeFileSync(join(folder, "index.html"), '<!doctype html><title>waiting</title><script type="module" src="main.js"></script>');
  mkdirSync(join(folder, "out"));
  server = await serve({ "/": join(folder, "out"), "/models/pocket/": join(root, "models/pocket") });
  context = await launch();
});

after(async () => {
  await context?.close();
  await server?.close();
  rmSync(folder, { recursive: true, force: true });
});

const run = (name, ...options) => {
  const { bin } = JSON.parse(readFileSync(join(folder, "node_modules", name, "package.json")));
  const script = join(folder, "node_modules", name, typeof bin === "string" ? bin : Object.values(bin)[0]);
  execFileSync(process.execPath, [script, ...options], { cwd: folder, stdio: ["ignore", "ignore", "inherit"] });
};

/** The package's files next to a bundle, for bundlers that ignore `new URL(…, import.meta.url)`. */
const copyAssets = (name) => {
  for (const file of ["worker.js", "mgm_web_bg.wasm"]) cpSync(join(folder, "node_modules/mgm-webgpu/dist", file), join(folder, "out", name, file));
};

/** What the page of a bundle answers. */
async function answerOf(name, type = "module") {
  const page = join(folder, "out", name, "index.html");
  if (!existsSync(page)) writeFileSync(page, `<!doctype html><title>waiting</title><script type="${type}" src="main.js"></script>`);
  const tab = await context.newPage();
  await tab.goto(`${server.url}/${name}/`);
  await tab.waitForFunction(() => document.title !== "waiting", undefined, { timeout: 120_000 });
  const title = await tab.title();
  await tab.close();
  // The build's folder must not leak into what the page loads.
  const scripts = readdirSync(join(folder, "out", name)).filter((file) => file.endsWith(".js"));
  assert.deepEqual(scripts.filter((file) => readFileSync(join(folder, "out", name, file), "utf8").includes(`file://${folder}`)), [], name);
  return title;
}

test("webpack, Rspack, Parcel and Rollup with import-meta-assets emit the worker and the wasm module", { timeout: 300_000 }, async () => {
  run("webpack-cli", "--mode", "production", "--entry", "./main.js", "-o", "out/webpack", "--devtool", "false");
  run("@rspack/cli", "build", "--mode", "production", "--entry", "./main.js", "-o", "out/rspack", "--devtool", "false");
  run("parcel", "build", "index.html", "--dist-dir", "out/parcel", "--no-cache", "--no-source-maps", "--public-url", "./");
  writeFileSync(join(folder, "rollup.config.mjs"), `import resolve from "@rollup/plugin-node-resolve";
    import { importMetaAssets } from "@web/rollup-plugin-import-meta-assets";
    export default { input: "main.js", output: { dir: "out/rollup-assets", format: "es" }, plugins: [resolve(), importMetaAssets()] };`);
  run("rollup", "-c", "rollup.config.mjs", "--silent");
  const answers = [];
  for (const name of ["webpack", "rspack", "parcel", "rollup-assets"]) answers.push(await answerOf(name));
  assert.ok(answers[0].length > 0 && !answers[0].includes(":"), answers[0]);
  assert.deepEqual(answers, Array(4).fill(answers[0]));
});

test("Rollup, and esbuild with modules and with a classic script, find the two files next to their output", { timeout: 300_000 }, async () => {
  run("rollup", "-i", "main.js", "-f", "es", "-d", "out/rollup", "-p", "node-resolve", "--silent");
  for (const format of ["esm", "iife"]) {
    await build({ absWorkingDir: folder, entryPoints: ["main.js"], bundle: true, format, outdir: `out/esbuild-${format}`, logLevel: "error" });
  }
  const answers = [];
  for (const [name, type] of [["rollup", "module"], ["esbuild-esm", "module"], ["esbuild-iife", "text/javascript"]]) {
    copyAssets(name);
    answers.push(await answerOf(name, type));
  }
  assert.ok(answers[0].length > 0 && !answers[0].includes(":"), answers[0]);
  assert.deepEqual(answers, Array(3).fill(answers[0]));
});
