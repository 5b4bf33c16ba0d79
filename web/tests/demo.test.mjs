// The demo page as users operate it. MGM_SCREENSHOTS names a folder for screenshots of its main states.

import assert from "node:assert/strict";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { bundle, goldens, isFirefox, launch, root, web } from "./browser.mjs";
import { serve } from "./server.mjs";
import { scriptedModel } from "./scripted-model.mjs";

const photo = join(root, "tests/data/images/photo.jpg");
const image = join(goldens, "gemma-2b/image0.png");
let server, context, page, slow = false;

before(async () => {
  const demo = join(web, "demo/dist");
  server = await serve(
    // In a subfolder, as on many static hosts.
    {
      "/some/where/": demo, "/some/where/models/tiny/": bundle("gemma-2b", "q4"),
      "/some/where/models/pocket/": join(root, "models/pocket"), "/some/where/models/pocket-sdxl/": join(root, "models/pocket-sdxl"),
      "/some/where/models/scripted/": bundle(scriptedModel(), "f32"), "/some/where/models/sdxl/": bundle(join(goldens, "sdxl-base/sdxl"), "f32"),
      "/some/where/models.json": join(web, "tests/page/models.json"),
    },
    { faults: ({ path }) => (slow && path.endsWith(".safetensors") ? { bytesPerSecond: 300_000 } : {}) },
  );
  context = await launch({ viewport: { width: 1100, height: 760 }, acceptDownloads: true, colorScheme: "light" });
  page = await context.newPage();
  page.on("pageerror", (error) => assert.fail(String(error)));
});

after(async () => {
  await context?.close();
  await server?.close();
});

async function shot(name) {
  const folder = process.env.MGM_SCREENSHOTS;
  if (!folder) return;
  mkdirSync(folder, { recursive: true });
  await page.screenshot({ path: join(folder, `${name}.png`) });
}

const idle = () => page.waitForFunction(() => document.getElementById("stop").hidden && document.getElementById("status").hidden, undefined, { timeout: 240_000 });
const answers = () => page.locator(".message.assistant .text").allTextContents();

test("the page welcomes the user and lists the models with their sizes", async () => {
  await page.goto(`${server.url}/some/where/`);
  await page.getByText("nothing leaves this device").waitFor();
  await shot("welcome");
  await page.getByRole("button", { name: "Choose a model" }).first().click();
  await page.getByText("Tiny MGM-2B").waitFor();
  // Firefox does not name the adapter.
  assert.match(await page.locator("#device").textContent(), isFirefox ? /This device: a GPU \(software adapter/ : /This device: .*swiftshader.*software adapter/);
  await shot("models");
});

test("the bundled models answer an example and generate its image", { timeout: 600_000 }, async (t) => {
  await page.getByRole("button", { name: "Close" }).click();
  const pressed = performance.now();
  await page.getByRole("button", { name: "What does the text say?" }).click();
  await page.waitForFunction(() => document.querySelector(".message.assistant .text")?.textContent.trim(), undefined, { timeout: 240_000 });
  t.diagnostic(`download, load and the first token: ${((performance.now() - pressed) / 1000).toFixed(1)} s`);
  await page.getByRole("button", { name: /Pocket · .* \+ Pocket SDXL/ }).waitFor({ timeout: 120_000 });
  await idle();
  assert.deepEqual((await answers()).map((text) => text.trim()), ["bus"]);
  await shot("example");
  await page.getByRole("button", { name: "New" }).click();
  await shot("examples");
  // Instead of 20: each takes seconds on a software adapter.
  await page.getByRole("button", { name: "Settings" }).click();
  await page.getByLabel("Steps").fill("4");
  await page.getByRole("button", { name: "Close" }).click();
  await page.getByRole("button", { name: "Draw a blue dog." }).click();
  await page.getByAltText("Generated: a blue dog").waitFor({ timeout: 240_000 });
  await idle();
  await shot("example-generated");
  // A second visit, with the models on the device.
  await page.getByRole("button", { name: "New" }).click();
  await page.reload();
  await page.getByRole("button", { name: "Read the number." }).waitFor();
  const again = performance.now();
  await page.waitForFunction(() => document.getElementById("status").hidden && document.getElementById("model-name").textContent.includes("SDXL ·"), undefined, { timeout: 120_000 });
  await page.getByRole("button", { name: "Read the number." }).click();
  await page.waitForFunction(() => document.querySelector(".message.assistant .text")?.textContent.trim(), undefined, { timeout: 240_000 });
  t.diagnostic(`models that are on the device, loaded, and the first token: ${((performance.now() - again) / 1000).toFixed(1)} s`);
  await idle();
  assert.deepEqual((await answers()).map((text) => text.trim()), ["113"]);
  await page.getByRole("button", { name: "New" }).click();
  await page.evaluate(() => localStorage.setItem("mgm-settings", JSON.stringify({ ...JSON.parse(localStorage.getItem("mgm-settings")), model: "", imageModel: "" })));
  await page.reload();
  await page.getByRole("button", { name: "Choose a model" }).first().click();
  await page.getByText("Tiny MGM-2B").waitFor();
});

test("a download shows progress, can be cancelled, and resumes", { timeout: 240_000 }, async () => {
  slow = true;
  await page.getByRole("button", { name: "Download Tiny MGM-2B" }).click();
  await page.locator("#status-text").getByText(/Downloading/).waitFor();
  await shot("downloading");
  await page.getByRole("button", { name: "Cancel" }).click();
  await idle();
  slow = false;
  await page.getByRole("button", { name: "Choose a model" }).first().click();
  await page.getByRole("button", { name: "Download Tiny MGM-2B" }).click();
  await page.getByRole("button", { name: /Tiny MGM-2B.*q4/ }).waitFor({ timeout: 120_000 });
  await idle();
});

test("a question about an image gets a streamed answer", { timeout: 300_000 }, async () => {
  await page.locator("#files").setInputFiles(image);
  await page.getByAltText("Image 1").waitFor();
  await page.getByRole("button", { name: "Settings" }).click();
  await page.getByLabel("Maximum tokens").fill("24");
  await page.getByLabel(/Temperature/).fill("0");
  await shot("settings");
  await page.getByRole("button", { name: "Close" }).click();
  await page.getByLabel("Question", { exact: true }).fill("What is in this image?");
  await shot("question");
  await page.keyboard.press("Enter");
  await page.getByRole("button", { name: "Stop" }).waitFor();
  await shot("answering");
  await idle();
  await page.getByText(/tokens\/s · first token after/).waitFor();
  await shot("answered");
  assert.equal((await answers()).length, 1);
});

test("Escape stops a second turn", { timeout: 300_000 }, async () => {
  await page.getByRole("button", { name: "Settings" }).click();
  await page.getByLabel("Maximum tokens").fill("2000");
  await page.getByLabel(/Temperature/).fill("1");
  await page.getByRole("button", { name: "Close" }).click();
  await page.getByLabel("Question", { exact: true }).fill("And **why**?");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.querySelectorAll(".message.assistant .text")[1]?.textContent.length > 20, undefined, { timeout: 120_000 });
  await page.keyboard.press("Escape");
  await idle();
  await page.getByText("stopped", { exact: true }).waitFor();
});

test("the page shows the attention map of an image", { timeout: 300_000 }, async () => {
  await page.getByRole("button", { name: /show the attention map/ }).click();
  await page.getByRole("heading", { name: "Attention map" }).waitFor({ timeout: 240_000 });
  const { dark, bright } = await page.evaluate(() => {
    const canvas = document.getElementById("attention-canvas");
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    let [dark, bright] = [0, 0];
    for (let i = 0; i < data.length; i += 4) data[i] + data[i + 1] + data[i + 2] < 120 ? dark++ : bright++;
    return { dark, bright };
  });
  assert.ok(dark > 100 && bright > 100, `${dark} dark and ${bright} bright pixels`);
  await shot("attention-map");
  await page.getByRole("button", { name: "Close" }).click();
});

test("a reload restores the conversation and the model, also offline", { timeout: 240_000 }, async () => {
  const before = await answers();
  await page.waitForFunction(() => navigator.serviceWorker.controller !== null);
  const requests = server.log.length;
  await page.reload();
  await page.getByRole("button", { name: /Tiny MGM-2B.*q4/ }).waitFor({ timeout: 120_000 });
  await idle();
  assert.deepEqual(await answers(), before);
  assert.ok(!server.log.slice(requests).some(({ path }) => path.endsWith(".safetensors")), "shards were requested again");
  await context.setOffline(true);
  await page.reload();
  await page.getByText("What is in this image?").waitFor();
  await page.getByRole("button", { name: /Tiny MGM-2B.*q4/ }).waitFor({ timeout: 120_000 });
  await context.setOffline(false);
  await idle();
});

test("the conversation exports with its images", async () => {
  const download = page.waitForEvent("download");
  await page.getByRole("button", { name: "Export" }).click();
  const { messages } = JSON.parse(await (await (await download).createReadStream()).toArray().then((parts) => Buffer.concat(parts).toString()));
  assert.deepEqual(messages.map(({ role }) => role), ["user", "assistant", "user", "assistant"]);
  assert.match(messages[0].content[0].image_url.url, /^data:image\/png;base64,/);
});

test("images can be dropped, pasted and removed", async () => {
  const give = (type) =>
    page.evaluate(async (type) => {
      const png = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";
      const file = new File([await (await fetch(`data:image/png;base64,${png}`)).blob()], "dot.png", { type: "image/png" });
      const data = new DataTransfer();
      data.items.add(file);
      const event = type === "paste" ? new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true }) : new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true });
      document.body.dispatchEvent(event);
    }, type);
  await give("drop");
  await give("paste");
  await page.getByAltText("Image 2").last().waitFor();
  await page.getByRole("button", { name: "Remove image 1" }).click();
  await page.getByRole("button", { name: "Remove image 1" }).click();
  assert.equal(await page.locator("#attachments li").count(), 0);
});

test("a model's text runs no scripts and sends no requests", async () => {
  await page.evaluate(async () => {
    const database = await new Promise((resolve) => (indexedDB.open("mgm-demo", 1).onsuccess = (event) => resolve(event.target.result)));
    const text = '# Title\n\n<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>[a](javascript:window.hacked=1) ![](/leak-1.png) <svg><image href="/leak-2.png"/><rect fill="url(/leak-3.svg#a)"/></svg><math><mi xlink:href="/leak-4"></mi></math><p style="background:url(/leak-5.png)">p</p><table background="/leak-6.png"><tr><td>x</td></tr></table>\n\n|a|b|\n|-|-|\n|1|2|';
    await new Promise((resolve) => {
      const transaction = database.transaction("conversation", "readwrite");
      const entries = [{ role: "user", text: "Hello", images: [] }, { role: "assistant", text, images: [] }];
      transaction.objectStore("conversation").put({ entries, saved: Date.now() }, sessionStorage.getItem("mgm-conversation"));
      transaction.oncomplete = resolve;
    });
  });
  await page.reload();
  await page.getByRole("heading", { name: "Title" }).waitFor();
  assert.equal(await page.evaluate(() => window.hacked), undefined);
  assert.equal(await page.locator(".message.assistant img, .message.assistant script, .message.assistant a[href^=javascript]").count(), 0);
  assert.equal(await page.locator(".message.assistant table td").count(), 3);
  await page.waitForTimeout(500);
  assert.deepEqual(server.log.map(({ path }) => path).filter((path) => path.includes("leak")), []);
});

const use = async (name) => {
  await page.locator("#model").click();
  await page.getByRole("button", { name }).click();
  await page.waitForFunction((name) => document.getElementById("model-name").textContent.includes(`${name} · `), name.replace(/^\w+ /, ""), { timeout: 120_000 });
  await idle();
};

test("an image model loads next to a chat model and generates into the conversation", { timeout: 600_000 }, async () => {
  await page.getByRole("button", { name: "New" }).click();
  await use("Download Miner");
  assert.ok(await page.getByRole("button", { name: "Ask for an image" }).isHidden(), "no image model yet");
  await use("Download Tiny SDXL");
  assert.match(await page.locator("#model-name").textContent(), /Miner · f32 \+ Tiny SDXL · f32/);
  await page.getByRole("button", { name: "Settings" }).click();
  await page.getByLabel("Steps").fill("3");
  await page.getByLabel("Maximum tokens").fill("24");
  await shot("settings-images");
  await page.getByRole("button", { name: "Close" }).click();
  await page.getByRole("button", { name: "Ask for an image" }).click();
  assert.equal(await page.getByRole("button", { name: "Ask for an image" }).getAttribute("aria-pressed"), "true");
  await page.getByLabel("Question", { exact: true }).fill("What are mountains full of?");
  await page.keyboard.press("Enter");
  assert.equal(await page.locator(".message.assistant").getAttribute("aria-busy"), "true");
  await page.getByText(/Generating the image: step [12] of 3/).waitFor({ timeout: 120_000 });
  await page.locator(".generated canvas").waitFor();
  await shot("generating");
  await page.getByAltText("Generated: a gold mine").waitFor({ timeout: 240_000 });
  await idle();
  await shot("generated");
  assert.equal(await page.locator(".message.assistant").getAttribute("aria-busy"), "false");
  // The description is only the caption.
  assert.equal((await answers())[0].trim(), "");
  assert.match(await page.locator(".message.assistant .facts").textContent(), /tokens\/s.*image generated in [\d.]+ s.*seed \d+|image generated in [\d.]+ s.*tokens\/s/);
  const saved = page.waitForEvent("download");
  await page.getByRole("link", { name: "Save" }).click();
  assert.match((await saved).suggestedFilename(), /^image-\d+\.png$/);
});

test("generation can be stopped; generated images and both models survive a reload and are exported", { timeout: 600_000 }, async () => {
  await page.getByRole("button", { name: "Settings" }).click();
  await page.getByLabel("Steps").fill("500");
  await page.getByRole("button", { name: "Close" }).click();
  await page.getByLabel("Question", { exact: true }).fill("And valleys?");
  await page.keyboard.press("Enter");
  await page.getByText(/Generating the image: step 1 of 500/).waitFor({ timeout: 120_000 });
  await page.keyboard.press("Escape");
  await idle();
  await page.getByText("stopped", { exact: true }).waitFor();
  await page.reload();
  await page.getByAltText("Generated: a gold mine").waitFor();
  await page.waitForFunction(() => document.getElementById("model-name").textContent === "Miner · f32 + Tiny SDXL · f32", undefined, { timeout: 120_000 });
  await idle();
  const download = page.waitForEvent("download");
  await page.getByRole("button", { name: "Export" }).click();
  const { messages } = JSON.parse(await (await (await download).createReadStream()).toArray().then((parts) => Buffer.concat(parts).toString()));
  assert.match(messages[1].content[0].image_url.url, /^data:image\/png;base64,/);
  assert.match(messages[1].content[1].text, /<h> a gold mine<\/h>/);
});

test("an image model alone generates what the user describes", { timeout: 600_000 }, async () => {
  await page.evaluate(() => localStorage.setItem("mgm-settings", JSON.stringify({ ...JSON.parse(localStorage.getItem("mgm-settings")), model: "", steps: 2 })));
  await page.reload();
  await page.waitForFunction(() => document.getElementById("model-name").textContent === "Tiny SDXL · f32", undefined, { timeout: 120_000 });
  await idle();
  await page.getByRole("button", { name: "New" }).click();
  await page.getByLabel("Question", { exact: true }).fill("a misty hill");
  await page.keyboard.press("Enter");
  await page.getByAltText("Generated: a misty hill").waitFor({ timeout: 240_000 });
  await idle();
});

test("an unanswered question can be sent again; tabs have their own conversations; an image model loads from files", { timeout: 600_000 }, async () => {
  await page.evaluate(async () => {
    const database = await new Promise((resolve) => (indexedDB.open("mgm-demo", 1).onsuccess = (event) => resolve(event.target.result)));
    await new Promise((resolve) => {
      const transaction = database.transaction("conversation", "readwrite");
      const entries = [{ role: "user", text: "Hello", images: [] }, { role: "assistant", text: "Hi", images: [] }, { role: "user", text: "And now?", images: [] }];
      transaction.objectStore("conversation").put({ entries, saved: Date.now() }, sessionStorage.getItem("mgm-conversation"));
      transaction.oncomplete = resolve;
    });
    localStorage.setItem("mgm-settings", JSON.stringify({ ...JSON.parse(localStorage.getItem("mgm-settings")), model: "", imageModel: "" }));
  });
  await page.reload();
  await page.getByText("Hi", { exact: true }).waitFor();
  assert.equal(await page.getByLabel("Question", { exact: true }).inputValue(), "And now?");
  assert.equal(await page.locator(".message").count(), 2);

  const other = await context.newPage();
  await other.goto(`${server.url}/some/where/`);
  await other.getByText("Hi", { exact: true }).waitFor();
  await other.getByRole("button", { name: "New" }).click();
  await other.waitForTimeout(300);
  await other.close();
  await page.reload();
  await page.getByText("Hi", { exact: true }).waitFor();

  // From a URL without a slash at its end, and from a folder.
  await page.locator("#model").click();
  await page.getByLabel("URL of a bundle").fill(`${server.url}/some/where/models/scripted`);
  await page.getByRole("button", { name: "Load from URL" }).click();
  await page.waitForFunction(() => document.getElementById("model-name").textContent === "scripted · f32", undefined, { timeout: 120_000 });
  await idle();
  await page.locator("#model-folder-input").setInputFiles(bundle(join(goldens, "sdxl-base/sdxl"), "f32"));
  await page.waitForFunction(() => document.getElementById("model-name").textContent.startsWith("scripted · f32 + "), undefined, { timeout: 120_000 });
  await idle();
  assert.ok(await page.getByRole("button", { name: "Ask for an image" }).isVisible());
  await page.reload();
  await page.waitForFunction(() => document.getElementById("model-name").textContent.includes(" · f32"), undefined, { timeout: 120_000 });
  await idle();
});

test("the page works on a phone, in dark mode, and by keyboard", async () => {
  await page.setViewportSize({ width: 375, height: 700 });
  await page.emulateMedia({ colorScheme: "dark" });
  await idle();
  await shot("phone-dark");
  const wide = await page.evaluate(() => document.documentElement.scrollWidth > innerWidth);
  assert.ok(!wide, "the page scrolls sideways");
  // All controls have an accessible name.
  const nameless = await page.evaluate(() =>
    [...document.querySelectorAll("button, input:not([hidden]), textarea, select")].filter((element) => {
      const name = element.getAttribute("aria-label") ?? element.textContent.trim();
      return !name && !element.labels?.length;
    }).map((element) => element.outerHTML.slice(0, 80)),
  );
  assert.deepEqual(nameless, []);
  await page.getByRole("button", { name: "New" }).click();
  assert.equal(await page.evaluate(() => document.activeElement.id), "question");
  await page.keyboard.press("Shift+Tab");
  assert.notEqual(await page.evaluate(() => document.activeElement.tagName), "BODY");
});

test("without WebGPU the page says what to do", async () => {
  const other = await context.newPage();
  await other.addInitScript(() => Object.defineProperty(Navigator.prototype, "gpu", { get: () => undefined }));
  await other.goto(`${server.url}/some/where/`);
  await other.getByText("This browser has no WebGPU").waitFor();
  page = other;
  await shot("no-webgpu");
  await other.close();
});
