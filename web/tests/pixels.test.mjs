// The pixels that the model receives, compared with those in a file.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
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
  const encoder = await build({ entryPoints: [join(web, "ts", "png.ts")], bundle: true, format: "iife", globalName: "png", write: false });
  await page.addScriptTag({ content: encoder.outputFiles[0].text });
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

test("transparent pixels are over white, as natively", async () => {
  const [width, height] = [16, 8];
  // Each row has its own alpha: none, some, all.
  const alphas = [0, 1, 2, 63, 128, 200, 254, 255];
  const rgba = Array.from({ length: width * height }, (_, i) => [(i * 37) % 256, (i * 91 + 5) % 256, 255 - i, alphas[Math.floor(i / width)]]).flat();
  const got = await page.evaluate(async (base64) => {
    const blob = new Blob([Uint8Array.from(atob(base64), (c) => c.charCodeAt(0))], { type: "image/png" });
    const { width, height, data } = await messages.toPixels(blob);
    // The same pixels from the page, which keeps them.
    const own = new ImageData(Uint8ClampedArray.of(10, 20, 30, 0, 10, 20, 30, 128, 10, 20, 30, 255), 3, 1);
    const fromPage = [...(await messages.toPixels(own)).data];
    return { width, height, data: [...data], fromPage, own: [...own.data] };
  }, png(width, height, rgba).toString("base64"));
  assert.deepEqual([got.width, got.height], [width, height]);
  // Rounded to the nearest value, as Pillow's `paste` and `mgm` do.
  const expected = rgba.map((value, i) => {
    const alpha = rgba[i - (i % 4) + 3];
    return i % 4 === 3 ? 255 : Math.round((value * alpha + 255 * (255 - alpha)) / 255);
  });
  assert.deepEqual(got.data, expected);
  assert.deepEqual(got.fromPage, [255, 255, 255, 255, 132, 137, 142, 255, 10, 20, 30, 255]);
  assert.deepEqual(got.own.slice(0, 4), [10, 20, 30, 0]);
});

test("pixels are read exactly, through canvases of at most a megapixel, and images of more than 16.7 megapixels are reduced", { timeout: 120_000 }, async () => {
  const result = await page.evaluate(async () => {
    const sizes = [];
    const Native = OffscreenCanvas;
    self.OffscreenCanvas = class extends Native {
      constructor(width, height) {
        super(width, height);
        sizes.push(width * height);
      }
    };
    /** A gradient in which every pixel of a tile differs from its neighbours, as a bitmap. */
    const image = (width, height) => {
      const pixels = new ImageData(width, height);
      new Uint32Array(pixels.data.buffer).forEach((_, at, values) => (values[at] = (0xff000000 | Math.imul(at, 2654435761)) >>> 0));
      return pixels;
    };
    const exact = [];
    for (const [width, height] of [[1, 1], [1023, 1025], [2048, 1], [3, 2500], [1500, 1500]]) {
      const pixels = image(width, height);
      const read = await messages.toPixels(await createImageBitmap(pixels));
      exact.push(read.width === width && read.height === height && read.data.every((value, at) => value === pixels.data[at]));
    }
    const large = [];
    for (const [width, height] of [[8064, 6048], [30000, 1000]]) {
      const plain = new ImageData(width, height);
      new Uint32Array(plain.data.buffer).fill(0xff3060c0);
      const { width: w, height: h, data } = await messages.toPixels(await createImageBitmap(plain));
      large.push({ pixels: w * h, ratio: (w / h) * (height / width), colour: [...data.subarray(4 * Math.floor(data.length / 8)).subarray(0, 4)] });
    }
    self.OffscreenCanvas = Native;
    return { exact, large, largest: Math.max(...sizes) };
  });
  assert.deepEqual(result.exact, [true, true, true, true, true]);
  for (const { pixels, ratio, colour } of result.large) {
    assert.ok(pixels <= 4096 ** 2 && pixels > 0.99 * 4096 ** 2, `${pixels}`);
    assert.ok(Math.abs(ratio - 1) < 0.01, `${ratio}`);
    assert.deepEqual(colour, [0xc0, 0x60, 0x30, 0xff]);
  }
  assert.equal(result.largest, 1024 ** 2);
});

test("a browser that hides pixels against fingerprinting gives an error, not noise", async () => {
  const [code, message] = await page.evaluate(async () => {
    const { getImageData } = OffscreenCanvasRenderingContext2D.prototype;
    OffscreenCanvasRenderingContext2D.prototype.getImageData = (x, y, width, height) => {
      const pixels = new ImageData(width, height);
      crypto.getRandomValues(pixels.data.subarray(0, 65536));
      pixels.data.fill(255, 0, 1);
      return pixels;
    };
    const error = await messages.toPixels(await createImageBitmap(new ImageData(8, 8))).catch((error) => error);
    OffscreenCanvasRenderingContext2D.prototype.getImageData = getImageData;
    return [error.code, error.message];
  });
  assert.equal(code, "image");
  assert.match(message, /fingerprinting/);
});

test("a PNG file has the pixels and the texts", async () => {
  const { same, text, bytes } = await page.evaluate(async () => {
    const noise = new ImageData(97, 61);
    crypto.getRandomValues(noise.data);
    const ramp = new ImageData(300, 200);
    for (let at = 0; at < ramp.data.length; at++) ramp.data[at] = Math.floor(at / 4 / 300) + (at % 1200) / 12;
    const same = [];
    let file;
    for (const pixels of [noise, ramp, new ImageData(1, 1)]) {
      for (let at = 3; at < pixels.data.length; at += 4) pixels.data[at] = 255;
      file = pixels === noise ? file : await png.toPng(pixels, {});
      const read = await messages.toPixels(await png.toPng(pixels, { parameters: "plain", mgm: "größer" }));
      same.push(read.width === pixels.width && read.data.every((value, at) => value === pixels.data[at]));
      if (pixels === ramp) self.rampBytes = file.size;
    }
    return { same, text: await (await png.toPng(noise, { parameters: "plain", mgm: "größer" })).text(), bytes: self.rampBytes };
  });
  assert.deepEqual(same, [true, true, true]);
  assert.match(text, /tEXtparameters\0plain/);
  assert.match(text, /iTXtmgm\0\0\0\0\0größer/);
  assert.ok(bytes < 0.1 * 300 * 200 * 3, `${bytes} bytes`);
});

test("a file that is cut off is an error, wherever it is cut", async () => {
  const folder = join(web, "../tests/data/image/decode");
  const decode = (bytes) =>
    page.evaluate(async (base64) => {
      const blob = new Blob([Uint8Array.from(atob(base64), (c) => c.charCodeAt(0))]);
      return messages.toPixels(blob).then(({ width }) => width, ({ code, message }) => `${code}: ${message}`);
    }, bytes.toString("base64"));
  for (const name of ["gray.jpg", "rotated.jpg", "rgb.png", "palette_transparent.png", "lossless.webp", "palette.gif", "rgb.bmp"]) {
    const bytes = readFileSync(join(folder, name));
    assert.equal(typeof (await decode(bytes)), "number", name);
    for (let share = 1; share < 12; share++) {
      const cut = bytes.subarray(0, Math.floor((bytes.length * share) / 12));
      assert.match(String(await decode(cut)), /^image: /, `${name}, ${cut.length} of ${bytes.length} bytes`);
    }
    // A GIF without its last byte has its whole image.
    if (!name.endsWith(".gif")) assert.match(String(await decode(bytes.subarray(0, -1))), /^image: .*cut off after/, name);
  }
});
