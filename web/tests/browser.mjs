// Starts Chromium with WebGPU on its software adapter, and packs bundles of the golden checkpoints.

import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, dirname, isAbsolute, join } from "node:path";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

export const web = dirname(dirname(fileURLToPath(import.meta.url)));
export const root = dirname(web);
export const target = process.env.CARGO_TARGET_DIR ?? join(root, "target");
export const mgm = join(target, "release", "mgm");
/** The folder of the golden cases with their weights, which are generated where that has not been done. */
export const goldens = dirname(execFileSync(join(target, "release", "mgm-goldens"), { encoding: "utf8" }).split("\n")[0]);
/** What these tests make of the golden cases; another folder for other cases. */
export const bundles = join(target, "web-bundles", basename(goldens));

const FLAGS = [
  "--no-sandbox", "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan", "--disable-quic",
  "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
];

/** Launches a browser with a fresh profile. `close` deletes the profile. */
export async function launch(options = {}) {
  const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
  if (!existsSync(executablePath)) {
    throw new Error(`${executablePath} is missing: apt-get install chromium, or set CHROMIUM to another binary`);
  }
  const profile = mkdtempSync(join(tmpdir(), "mgm-chromium-"));
  const context = await chromium.launchPersistentContext(profile, { executablePath, args: FLAGS, ...options });
  const close = context.close.bind(context);
  context.close = async () => {
    await close();
    rmSync(profile, { recursive: true, force: true });
  };
  return context;
}

/** Opens a page of the test server and waits for `window.Mgm`. */
export async function openPage(context, url) {
  const page = await context.newPage();
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) console.error(`[page] ${message.text()}`);
  });
  page.on("pageerror", (error) => console.error(`[page] ${error}`));
  await page.goto(url);
  await page.waitForFunction("window.ready");
  return page;
}

/** The folder of a bundle of a golden checkpoint, or of the model at a path. Packed once. */
export function bundle(name, precision, ...more) {
  const folder = join(bundles, `${name.replaceAll("/", "-")}-${precision}${more.join("")}`);
  if (!existsSync(join(folder, "bundle.json"))) {
    rmSync(folder, { recursive: true, force: true });
    mkdirSync(dirname(folder), { recursive: true });
    const model = isAbsolute(name) ? name : join(goldens, name, expected(name).checkpoint);
    const options = name.endsWith(".gguf") ? [] : ["--precision", precision];
    execFileSync(mgm, ["pack", model, ...options, "--out", folder, ...more], { stdio: "inherit" });
  }
  return folder;
}

export function expected(name) {
  return JSON.parse(readFileSync(join(goldens, name, "expected.json")));
}
