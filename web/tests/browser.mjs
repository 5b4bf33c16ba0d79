// Starts a browser with WebGPU on a software adapter, and packs bundles of the golden checkpoints.

import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, dirname, isAbsolute, join } from "node:path";
import { fileURLToPath } from "node:url";
import { chromium, firefox } from "playwright-core";

export const web = dirname(dirname(fileURLToPath(import.meta.url)));
export const root = dirname(web);
export const target = process.env.CARGO_TARGET_DIR ?? join(root, "target");
export const mgm = join(target, "release", "mgm");
/** The folder of the golden cases with their weights, which are generated where that has not been done. */
export const goldens = dirname(execFileSync(join(target, "release", "mgm-goldens"), { encoding: "utf8" }).split("\n")[0]);
/** What these tests make of the golden cases; another folder for other cases. */
/** A folder of `tests/data` with its generated files. */
export const data = (folder) => execFileSync(join(target, "release", "mgm-goldens"), ["--data", folder], { encoding: "utf8" }).trim();
export const bundles = join(target, "web-bundles", basename(goldens));

/** Whether this run tests Firefox (on lavapipe), not Chromium (on SwiftShader). */
export const isFirefox = process.env.MGM_BROWSER === "firefox";

const FLAGS = [
  "--no-sandbox", "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan", "--disable-quic",
  "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
];
// By default Firefox has no WebGPU on Linux, and refuses software adapters.
const PREFERENCES = { "dom.webgpu.enabled": true, "gfx.webgpu.ignore-blocklist": true, "gfx.webrender.software": true };

const DRIVERS = "/usr/share/vulkan/icd.d";

function chromiumOptions() {
  const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
  if (!existsSync(executablePath)) {
    throw new Error(`${executablePath} is missing: apt-get install chromium, or set CHROMIUM to another binary`);
  }
  return { executablePath, args: FLAGS };
}

/**
 * Playwright drives Firefox as Mozilla and Debian build it through WebDriver BiDi, which it selects by the channel. Versions after 1.64 of
 * Playwright need commands that Firefox 153 (ESR) does not have.
 */
function firefoxOptions(preferences) {
  const executablePath = process.env.FIREFOX ?? "/usr/bin/firefox-esr";
  if (!existsSync(executablePath)) {
    throw new Error(`${executablePath} is missing: apt-get install firefox-esr, or set FIREFOX to another binary`);
  }
  return { executablePath, env: { ...lavapipe(), ...process.env }, channel: "moz-firefox", firefoxUserPrefs: { ...PREFERENCES, ...preferences } };
}

/** The environment that makes lavapipe the only driver. */
export function lavapipe() {
  const file = existsSync(DRIVERS) && readdirSync(DRIVERS).find((name) => name.startsWith("lvp_icd"));
  return file ? { VK_DRIVER_FILES: join(DRIVERS, file), VK_ICD_FILENAMES: join(DRIVERS, file) } : {};
}

/** Launches a browser with a fresh profile. `close` deletes the profile. `preferences` are Firefox's. */
export async function launch({ inFirefox = isFirefox, preferences, ...options } = {}) {
  const profile = mkdtempSync(join(tmpdir(), "mgm-browser-"));
  const context = inFirefox
    ? await firefox.launchPersistentContext(profile, { ...firefoxOptions(preferences), ...options })
    : await chromium.launchPersistentContext(profile, { ...chromiumOptions(), ...options });
  const close = context.close.bind(context);
  context.close = async () => {
    await close();
    rmSync(profile, { recursive: true, force: true, maxRetries: 3 });
  };
  return context;
}

/** A browser whose sites may store only `bytes`, and its page at `url`. */
export async function launchWithQuota(url, bytes) {
  // Firefox takes KiB, for all sites together.
  const context = await launch({ preferences: { "dom.quotaManager.temporaryStorage.fixedLimit": Math.floor(bytes / 1024) } });
  const page = await openPage(context, url);
  if (!isFirefox) {
    const session = await context.newCDPSession(page);
    await session.send("Storage.overrideQuotaForOrigin", { origin: new URL(url).origin, quotaSize: bytes });
  }
  return { context, page };
}

/** Lets `crashGpu` act on the models that a page of the test server will load. */
export async function prepareCrash(page) {
  if (isFirefox) await page.evaluate(() => (env.workerUrl = "/losing-worker.js"));
}

/** Loses the page's devices as when a driver crashes. Firefox has no GPU process to kill where it draws in software. */
export async function crashGpu(page) {
  if (isFirefox) {
    await page.evaluate(() => new BroadcastChannel("lose").postMessage(undefined));
    return;
  }
  const session = await page.context().newCDPSession(page);
  await session.send("Browser.crashGpuProcess");
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

/** Runs in a page, before it uses the package: collects its workers that were started and not terminated. */
export function watchWorkers() {
  self.liveWorkers = new Set();
  self.Worker = class extends Worker {
    constructor(...values) {
      super(...values);
      liveWorkers.add(this);
    }
    terminate() {
      liveWorkers.delete(this);
      super.terminate();
    }
  };
}

/** The number of a page's workers (see `watchWorkers`), and the names of the package's locks that are held or requested. */
export const held = (page) =>
  page.evaluate(async () => {
    const { held, pending } = await navigator.locks.query();
    return { workers: liveWorkers.size, locks: [...held, ...pending].map(({ name }) => name).filter((name) => name.startsWith("mgm")) };
  });

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
