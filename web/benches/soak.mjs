// Memory and latency over many answers with images in one page: `make web-soak`, or soak.mjs [--answers 300] [--out DIR] [--svg FILE].
// MGM_BROWSER=firefox measures Firefox (on lavapipe), otherwise Chromium (on SwiftShader).
//
// Asks the bundled model about three images in turn. After each answer it samples the resident memory of the page's process and of the process
// that runs WebGPU (Chromium's GPU process, Firefox's main process), which on a software adapter holds the device's memory, and what the
// package reports: bytes of the wasm heap and on the device. benches/soak.py judges and plots the samples.

import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { isFirefox, launch, openPage, root, target, web } from "../tests/browser.mjs";
import { serve } from "../tests/server.mjs";

const name = isFirefox ? "firefox" : "chromium";
const { values: options } = parseArgs({
  options: { answers: { type: "string", default: "300" }, out: { type: "string", default: join(target, "soak") }, svg: { type: "string" } },
});
const answers = Number(options.answers);
const images = readdirSync(join(root, "pocket/examples")).filter((file) => file.endsWith(".png")).sort();

const PAGE_SIZE = Number(execFileSync("getconf", ["PAGE_SIZE"], { encoding: "utf8" }));
const read = (pid, file) => {
  try {
    return readFileSync(`/proc/${pid}/${file}`, "utf8");
  } catch {
    // The process has ended.
    return "";
  }
};

/** The processes that this one started, and those that they started, with their command lines. */
function processes() {
  const parents = new Map();
  for (const pid of readdirSync("/proc").filter((entry) => /^\d+$/.test(entry)).map(Number)) {
    // The fields follow the name, which is in brackets and may contain anything.
    parents.set(pid, Number(/.*\) \S+ (\d+)/s.exec(read(pid, "stat"))?.[1]));
  }
  const isOurs = (pid) => pid === process.pid || (parents.has(pid) && isOurs(parents.get(pid)));
  const ours = [...parents.keys()].filter((pid) => pid !== process.pid && isOurs(pid));
  // Chromium's children separate their arguments by blanks.
  return ours.map((pid) => ({ pid, command: read(pid, "cmdline").split(/[\0 ]/) }));
}

/** What a process does for the page: `page`, `gpu` or neither. */
function role({ command }) {
  if (!isFirefox) return { "--type=renderer": "page", "--type=gpu-process": "gpu" }[command.find((word) => word.startsWith("--type="))];
  if (!command[0].includes("firefox")) return undefined;
  if (!command.includes("-contentproc")) return "gpu";
  return command.includes("tab") ? "page" : undefined;
}

/** Resident bytes of both roles. */
function resident() {
  const bytes = { page: 0, gpu: 0 };
  for (const one of processes()) {
    const kind = role(one);
    if (kind) bytes[kind] += Number(read(one.pid, "statm").split(" ")[1] ?? 0) * PAGE_SIZE;
  }
  const missing = Object.entries(bytes).find(([, size]) => size === 0);
  if (missing) throw new Error(`no process of ${name} is the ${missing[0]} process`);
  return bytes;
}

const server = await serve({
  "/": join(web, "tests/page"), "/dist/": join(web, "dist"), "/model/": join(root, "models/pocket"), "/images/": join(root, "pocket/examples"),
});
const context = await launch();
const samples = [];
try {
  const page = await openPage(context, `${server.url}/`);
  await page.evaluate(async () => (self.mgm = await Mgm.load("/model/")));
  for (let number = 0; number < answers; number++) {
    const { latency, wasm, gpu } = await page.evaluate(async ({ image, number }) => {
      const blob = await (await fetch(image)).blob();
      const started = performance.now();
      const question = `What is in image ${number}?`;
      await mgm.chat([{ role: "user", content: [blob, question] }], { temperature: 0, maxNewTokens: 16, image: { mode: "never" } });
      return { latency: (performance.now() - started) / 1000, ...(await mgm.memory()) };
    }, { image: `/images/${images[number % images.length]}`, number });
    samples.push({ latency, wasm, device: gpu, ...resident() });
    if ((number + 1) % 50 === 0) console.error(`${number + 1} of ${answers} answers`);
  }
} finally {
  await context.close();
  await server.close();
}
const series = (name, kind, key) => ({ name, kind, points: samples.map((sample, index) => [index + 1, sample[key]]) });
const report = {
  title: isFirefox ? "Firefox on lavapipe" : "Chromium on SwiftShader",
  series: [
    series("resident memory, page's process", "memory", "page"), series(`resident memory, ${isFirefox ? "main" : "GPU"} process`, "memory", "gpu"),
    series("wasm heap", "memory", "wasm"), series("buffers on the device", "memory", "device"), series("time per answer", "latency", "latency"),
  ],
};
mkdirSync(options.out, { recursive: true });
const file = join(options.out, `${name}.json`);
writeFileSync(file, JSON.stringify(report));
try {
  execFileSync("python3", [join(root, "benches/soak.py"), "--samples", file, ...(options.svg ? ["--svg", options.svg] : [])], { stdio: "inherit" });
} catch (error) {
  process.exitCode = error.status ?? 1;
}
