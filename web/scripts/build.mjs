// Builds the package into dist/ (wasm module, worker, module, types) and the demo page into demo/dist/.
// Needs cargo with the target wasm32-unknown-unknown (`make web-tools` installs it). `build.mjs --package` leaves out the demo page.

import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";
import { bundled, modelEntry, released } from "./models.mjs";

const web = dirname(dirname(fileURLToPath(import.meta.url)));
const root = dirname(web);
const dist = join(web, "dist");
const target = process.env.CARGO_TARGET_DIR ?? join(root, "target");
// Features of Rust's target. Every browser with WebGPU has them.
const FEATURES = ["bulk-memory", "mutable-globals", "nontrapping-float-to-int", "reference-types", "sign-ext", "multivalue", "simd"]
  .map((feature) => `--enable-${feature}`);
const run = (command, ...args) => execFileSync(command, args, { cwd: web, stdio: "inherit" });
const tool = (name) => join(web, "node_modules", ".bin", name);

/** The file that wasm-opt makes of a module. That takes most of a build, so the last one is stored and reused for the same module. */
function optimised(module) {
  // The lowest KiB is the far end of the stack, which comes first in memory: no valid address is there.
  const options = ["-Oz", "--converge", "--low-memory-unused", ...FEATURES];
  const version = readFileSync(join(web, "node_modules", "binaryen", "package.json"));
  const key = createHash("sha256").update(readFileSync(module)).update(version).update(options.join(" ")).digest("hex");
  const folder = join(target, "wasm-opt");
  const file = join(folder, `${key}.wasm`);
  if (existsSync(file)) return file;
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  run(tool("wasm-opt"), ...options, module, "-o", `${file}.new`);
  renameSync(`${file}.new`, file);
  return file;
}

rmSync(dist, { recursive: true, force: true });
mkdirSync(dist, { recursive: true });
run("cargo", "build", "--package", "mgm-web", "--target", "wasm32-unknown-unknown", "--profile", "web");
const glue = join(web, "ts", "wasm");
const module = join(target, "wasm32-unknown-unknown", "web", "mgm_web.wasm");
const tools = ["--manifest-path", join(web, "glue", "Cargo.toml"), "--target-dir", join(target, "tools")];
run("cargo", "run", "--quiet", "--release", "--locked", ...tools, "--", module, glue);
const wasm = join(dist, "mgm_web_bg.wasm");
if (process.env.MGM_WASM_OPT === "0") cpSync(join(glue, "mgm_web_bg.wasm"), wasm);
else cpSync(optimised(join(glue, "mgm_web_bg.wasm")), wasm);

const common = { bundle: true, format: "esm", target: "es2022", minify: true, sourcemap: true, outdir: dist };
await build({ ...common, entryPoints: [join(web, "ts", "index.ts")] });
// A classic script: bundlers copy it unchanged, and any origin can start it.
await build({ ...common, format: "iife", entryPoints: [join(web, "ts", "worker.ts")] });
run(tool("tsc"), "--noEmit");
run(tool("tsc"), "--project", "tsconfig.build.json");
for (const file of ["LICENSE-APACHE", "LICENSE-MIT"]) cpSync(join(root, file), join(web, file));
for (const file of ["index.js", "worker.js", "mgm_web_bg.wasm"]) {
  const path = join(dist, file);
  const zipped = gzipSync(readFileSync(path), { level: 9 }).length;
  console.log(`${file}: ${statSync(path).size} bytes, ${zipped} gzipped`);
}
if (process.argv.includes("--package")) process.exit();

// The demo page: static files with relative addresses.
const demo = join(web, "demo");
const page = join(demo, "dist");
rmSync(page, { recursive: true, force: true });
const source = (name) => join(demo, "src", `${name}.ts`);
const alias = { "mgm-webgpu": join(web, "ts", "index.ts") };
await build({ ...common, outdir: page, splitting: true, chunkNames: "[name]", entryPoints: [source("app")], alias });
// Bundled into one file: not all browsers support modules in service workers.
await build({ ...common, outdir: page, entryPoints: [source("sw")] });
run(tool("tsc"), "--project", join(demo, "tsconfig.json"));
for (const file of ["worker.js", "mgm_web_bg.wasm"]) cpSync(join(dist, file), join(page, file));
for (const file of ["index.html", "style.css", "icon.svg"]) cpSync(join(demo, file), join(page, file));
cpSync(join(root, "pocket", "examples"), join(page, "examples"), { recursive: true });
cpSync(bundled, join(page, "models"), { recursive: true });
writeFileSync(join(page, "models.json"), JSON.stringify([...readdirSync(bundled).flatMap((name) => modelEntry(bundled, name)), ...released]));
