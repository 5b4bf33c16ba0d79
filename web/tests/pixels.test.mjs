// The pixels that the model receives, compared with those in a file.

import assert from "node:assert/strict";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { crc32, deflateSync } from "node:zlib";
import { build } from "esbuild";
import { launch, web } from "./browser.mjs";
import { serve } from "./server.mjs";

let server, context, page;

before(async () => {
  server = await serve({ "/": join(web, "tests/page") });
  context = await launch();
  page = await context.newPage();
  // This test needs no wasm module.
  await page.route("**/dist/index.js", (route) => route.fulfill({ contentType: "text/javascript", body: "" }));
  await page.goto(`${server.url}/`);
  const { outputFiles } = await build({
    entryPoints: [join(web, "ts", "messages.ts")], bundle: true, format: "iife", globalName: "messages", write: false,
  });
  await page.addScriptTag({ content: outputFiles[0].text });
});

after(async () => {
  await context?.close();
  await server?.close();
});

/** An 8-bit RGBA PNG without filters, with one IDAT chunk. */
function png(width, height, rgba) {
  const chunk = (type, data) => {
    const body = Buffer.concat([Buffer.from(type, "latin1"), data]);
    const [length, sum] = [Buffer.alloc(4), Buffer.alloc(4)];
    length.writeUInt32BE(data.length);
    sum.writeUInt32BE(crc32(body));
    return Buffer.concat([length, body, sum]);
  };
  const head = Buffer.alloc(13);
  head.writeUInt32BE(width, 0);
  head.writeUInt32BE(height, 4);
  head.set([8, 6], 8);
  const rows = Array.from({ length: height }, (_, y) => [0, ...rgba.slice(y * width * 4, (y + 1) * width * 4)]).flat();
  const signature = Buffer.from([137, 80, 78, 71, 13, 10, 26, 10]);
  return Buffer.concat([signature, chunk("IHDR", head), chunk("IDAT", deflateSync(Buffer.from(rows))), chunk("IEND", Buffer.alloc(0))]);
}

test("transparent pixels keep their colours", async () => {
  const [width, height] = [16, 8];
  // Each row has its own alpha: none, some, all.
  const alphas = [0, 1, 2, 63, 128, 200, 254, 255];
  const rgba = Array.from({ length: width * height }, (_, i) => [(i * 37) % 256, (i * 91 + 5) % 256, 255 - i, alphas[Math.floor(i / width)]]).flat();
  const got = await page.evaluate(async (base64) => {
    const blob = new Blob([Uint8Array.from(atob(base64), (c) => c.charCodeAt(0))], { type: "image/png" });
    const { width, height, data } = await messages.toPixels(blob);
    return { width, height, data: [...data] };
  }, png(width, height, rgba).toString("base64"));
  assert.deepEqual([got.width, got.height], [width, height]);
  assert.deepEqual(got.data.filter((_, i) => i % 4 < 3), rgba.filter((_, i) => i % 4 < 3));
});
