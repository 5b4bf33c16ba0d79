// Takes a screenshot of the demo page for the README: Pocket answers a question about an image. screenshot.mjs [FILE]

import { join } from "node:path";
import { launch, root, web } from "../tests/browser.mjs";
import { serve } from "../tests/server.mjs";

const file = process.argv[2] ?? join(root, "docs", "demo-page.png");
const server = await serve({ "/": join(web, "demo/dist") });
const context = await launch({ viewport: { width: 920, height: 760 }, deviceScaleFactor: 1.5, colorScheme: "light" });
try {
  const page = await context.newPage();
  await page.goto(server.url);
  const isIdle = () => document.getElementById("stop").hidden && document.getElementById("status").hidden;
  const idle = () => page.waitForFunction(isIdle, undefined, { timeout: 240_000 });
  await page.getByRole("button", { name: "What does the text say?" }).click();
  await page.getByText("tokens/s").waitFor({ timeout: 240_000 });
  await page.getByRole("button", { name: /Pocket .* \+ / }).waitFor({ timeout: 240_000 });
  await idle();
  await page.getByLabel("Question", { exact: true }).fill("Describe the image.");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.querySelectorAll(".facts:not([hidden])").length === 2, undefined, { timeout: 240_000 });
  await idle();
  await page.screenshot({ path: file });
  console.log(file);
} finally {
  await context.close();
  await server.close();
}
