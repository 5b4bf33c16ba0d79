// The demo page for people who use a keyboard, a screen reader, a magnifier or a narrow screen. axe-core checks every state of the page, in
// light and dark.

import assert from "node:assert/strict";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { bundle, goldens, launch, root, web } from "./browser.mjs";
import { serve } from "./server.mjs";

const image = join(goldens, "gemma-2b/image0.png");
const PROMPT = "What is in this image?";
let server, context, page, slow = false, broken = false;

before(async () => {
  server = await serve(
    {
      "/": join(web, "demo/dist"), "/models/tiny/": bundle("gemma-2b", "q4"), "/models/pocket/": join(root, "models/pocket"),
      "/models.json": join(web, "tests/page/models.json"),
    },
    {
      faults: ({ path }) => {
        if (broken && path.startsWith("/models/")) return { status: 404 };
        return slow && path.endsWith(".safetensors") ? { bytesPerSecond: 200_000 } : {};
      },
    },
  );
  context = await launch({ viewport: { width: 1000, height: 720 } });
  await context.addInitScript({ path: join(web, "node_modules/axe-core/axe.min.js") });
  page = await context.newPage();
  await page.goto(`${server.url}/`);
  await page.getByRole("button", { name: "Draw a blue dog." }).waitFor();
});

after(async () => {
  await context?.close();
  await server?.close();
});

const idle = () => page.waitForFunction(() => document.getElementById("stop").hidden && document.getElementById("status").hidden, undefined, { timeout: 240_000 });
const focused = () => page.evaluate(() => document.activeElement.id || document.activeElement.ariaLabel || document.activeElement.textContent.trim());
/** Moves the focus with the Tab key to an element. */
async function tabTo(name, key = "Tab") {
  for (let press = 0; press < 40; press++) {
    if ((await focused()) === name) return;
    await page.keyboard.press(key);
  }
  assert.fail(`${key} does not reach ${name}; the focus is on ${await focused()}`);
}

/** What axe-core finds, what scrolls sideways at a width of 320 pixels, and what is wrong with the headings of the first level. */
async function findings() {
  const found = [];
  for (const [theme, width] of [["light", 1000], ["dark", 320]]) {
    await page.setViewportSize({ width, height: 720 });
    const here = await page.evaluate(async (theme) => {
      const before = document.documentElement.dataset.theme;
      document.documentElement.dataset.theme = theme;
      const { violations } = await axe.run(document, { resultTypes: ["violations"] });
      document.documentElement.dataset.theme = before;
      const found = violations.flatMap(({ id, nodes }) => nodes.map(({ target, failureSummary }) => `${id} at ${target}: ${failureSummary}`));
      const wide = [document.documentElement, document.querySelector("main"), ...document.querySelectorAll("dialog[open]")]
        .filter(({ scrollWidth, clientWidth }) => scrollWidth > clientWidth).map(({ id, tagName, scrollWidth }) => `${tagName} ${id} is ${scrollWidth} wide`);
      const first = [...document.querySelectorAll("h1")].filter((heading) => heading.checkVisibility() && heading.getBoundingClientRect().width > 1);
      if (first.length !== 1) found.push(`${first.length} visible headings of the first level`);
      return [...found, ...wide];
    }, theme);
    found.push(...here.map((text) => `${theme}, ${width} pixels: ${text}`));
  }
  await page.setViewportSize({ width: 1000, height: 720 });
  return found;
}

test("the start of the page has no findings", { timeout: 120_000 }, async () => {
  assert.deepEqual(await findings(), []);
});

test("a screen reader finds landmarks, names and live regions", async () => {
  const tree = await page.locator("body").ariaSnapshot();
  for (const part of [
    "- link \"Skip to the question\"", "- banner:", "- heading \"Mini-Gemini\" [level=1]", "- navigation \"Conversation\":", "- main:", "- log \"Conversation\"",
    "- form \"Your question\":", "- button \"Add images\"", "- textbox \"Question\"", "- button \"Send\"", "- button \"Choose a model\"",
  ]) assert.ok(tree.includes(part), `${part} is missing in\n${tree}`);
  const live = await page.evaluate(() => ["notice", "announcement", "log", "world", "check-result"].map((id) => document.getElementById(id).role));
  assert.deepEqual(live, ["alert", "status", "log", "status", "status"]);
});

test("the page loads a model and answers by keyboard alone, without findings while it does", { timeout: 400_000 }, async () => {
  await page.keyboard.press("Tab");
  assert.equal(await focused(), "Skip to the question");
  await page.keyboard.press("Enter");
  assert.equal(await focused(), "question");
  await tabTo("model", "Shift+Tab");
  await page.keyboard.press("Enter");
  await page.getByText("Tiny MGM-2B").waitFor();
  assert.deepEqual(await findings(), [], "dialog of models");
  // Escape closes a dialog, and the focus returns.
  await page.keyboard.press("Escape");
  assert.equal(await focused(), "model");
  await page.keyboard.press("Enter");
  await page.getByText("Tiny MGM-2B").waitFor();
  slow = true;
  await tabTo("Download Tiny MGM-2B");
  await page.keyboard.press("Enter");
  await page.getByText(/Downloading/).first().waitFor();
  assert.deepEqual(await findings(), [], "loading");
  await page.waitForFunction(() => document.getElementById("announcement").textContent.startsWith("Downloading"));
  slow = false;
  await page.waitForFunction(() => /Tiny MGM-2B · q4: ready/.test(document.getElementById("announcement").textContent), undefined, { timeout: 120_000 });
  await idle();
  assert.equal(await focused(), "question");
  assert.deepEqual(await findings(), [], "loaded");

  await tabTo("settings", "Shift+Tab");
  await page.keyboard.press("Enter");
  assert.deepEqual(await findings(), [], "settings");
  await page.getByLabel("Maximum tokens").fill("2000");
  await page.keyboard.press("Escape");
  assert.equal(await focused(), "settings");

  await tabTo("question");
  await page.keyboard.type(PROMPT);
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.querySelector(".message.assistant .text")?.textContent.length > 5, undefined, { timeout: 120_000 });
  const busy = () => page.locator(".message.assistant").last().getAttribute("aria-busy");
  assert.equal(await busy(), "true");
  assert.deepEqual(await findings(), [], "answering");
  await page.keyboard.press("Escape");
  await idle();
  assert.equal(await busy(), "false");
  assert.equal(await focused(), "question");
  assert.deepEqual(await findings(), [], "answered");
});

test("errors and images have no findings", { timeout: 240_000 }, async () => {
  const alert = page.getByRole("alert");
  await page.locator("#files").setInputFiles(join(web, "package.json"));
  await alert.getByText("Not an image: package.json").waitFor();
  assert.deepEqual(await findings(), [], "a file that is not an image");
  await page.locator("#files").setInputFiles(image);
  await page.getByAltText("Image 1").waitFor();
  assert.deepEqual(await findings(), [], "an image to send");
  assert.ok(await page.locator("#world").isHidden(), "this model is not limited to a world");
  await page.getByRole("button", { name: "Remove image 1" }).click();
  broken = true;
  await page.locator("#model").click();
  await page.getByLabel("URL of a bundle").fill(`${server.url}/models/nowhere/`);
  await page.getByRole("button", { name: "Load from URL" }).click();
  await alert.getByText("(http)").waitFor();
  broken = false;
  assert.deepEqual(await findings(), [], "a model that does not load");
});

test("a restored conversation with images, headings, code and long words has no findings", { timeout: 240_000 }, async () => {
  await page.evaluate(async () => {
    const png = await new Promise((resolve) => {
      const canvas = Object.assign(document.createElement("canvas"), { width: 64, height: 64 });
      canvas.getContext("2d").fillRect(0, 0, 32, 32);
      canvas.toBlob(resolve);
    });
    const text = `# Title\n\n#### Far below\n\n## Second\n\n\`\`\`\n${"code ".repeat(60)}\n\`\`\`\n\n${"long".repeat(60)}\n\n|a|b|\n|-|-|\n|${"x".repeat(80)}|2|\n\n- [ ] open\n- [x] done\n\n[a](https://example.org)`;
    const database = await new Promise((resolve) => (indexedDB.open("mgm-demo", 1).onsuccess = (event) => resolve(event.target.result)));
    await new Promise((resolve) => {
      const transaction = database.transaction("conversation", "readwrite");
      const entries = [
        { role: "user", text: "What is this?", images: [png] }, { role: "assistant", text, images: [], facts: "12 tokens/s" },
        { role: "user", text: "w".repeat(300), images: [] },
        { role: "assistant", text: "<h>a square</h>", images: [], generated: { png, prompt: "a square", seed: 1, width: 64, height: 64 } },
      ];
      transaction.objectStore("conversation").put({ entries, saved: Date.now() }, sessionStorage.getItem("mgm-conversation"));
      transaction.oncomplete = resolve;
    });
    database.close();
  });
  await page.reload();
  await page.getByAltText("Generated: a square").waitFor();
  await page.getByRole("heading", { name: "Title" }).waitFor();
  const levels = await page.locator(".message.assistant .text").first().evaluate((text) => [...text.querySelectorAll("h1, h2, h3, h4, h5, h6")].map(({ tagName }) => tagName));
  assert.deepEqual(levels, ["H3", "H4", "H4"]);
  await page.waitForFunction(() => /Tiny MGM-2B · q4/.test(document.getElementById("model-name").textContent), undefined, { timeout: 120_000 });
  await idle();
  assert.deepEqual(await findings(), []);
  await page.getByRole("button", { name: /show the attention map/ }).click();
  await page.getByRole("heading", { name: "Attention map" }).waitFor({ timeout: 120_000 });
  assert.deepEqual(await findings(), [], "attention map");
  await page.keyboard.press("Escape");
});

test("a visitor who gives Pocket an image of their own reads that Pocket knows only its world", { timeout: 240_000 }, async () => {
  await page.getByRole("button", { name: "New" }).click();
  await page.locator("#model").click();
  await page.getByRole("button", { name: "Download Pocket", exact: true }).click();
  await page.waitForFunction(() => /^Pocket · /.test(document.getElementById("model-name").textContent), undefined, { timeout: 120_000 });
  await idle();
  assert.ok(await page.locator("#world").isHidden());
  await page.locator("#files").setInputFiles(join(root, "tests/data/images/photo.jpg"));
  const world = page.getByRole("status").filter({ hasText: "Pocket knows only its own small world of emoji" });
  await world.waitFor();
  assert.match(await world.textContent(), /does not recognise what a photograph shows/);
  assert.deepEqual(await findings(), []);
  await world.getByRole("button", { name: "Choose another model" }).click();
  await page.getByRole("button", { name: "Download MGM-2B" }).waitFor();
  await page.keyboard.press("Escape");
  await page.getByRole("button", { name: "Remove image 1" }).click();
  assert.ok(await page.locator("#world").isHidden());
});
