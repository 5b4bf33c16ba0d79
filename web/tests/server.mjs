// A file server for tests, with faults of networks.

import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import { once } from "node:events";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";

const TYPES = {
  ".html": "text/html; charset=utf-8", ".js": "text/javascript", ".mjs": "text/javascript", ".css": "text/css", ".json": "application/json",
  ".wasm": "application/wasm", ".png": "image/png", ".jpg": "image/jpeg", ".svg": "image/svg+xml", ".webmanifest": "application/manifest+json",
};

/**
 * Serves folders under prefixes: `{ "/": "/path" }`. The longest matching prefix wins.
 *
 * `faults(request)` returns the faults of a request: `drop` (bytes after which the connection breaks, `linger` milliseconds later), `hang`
 * (bytes after which nothing more is sent), `corrupt` (offset of a byte to change), `status` (an error, with `headers`), `html` (a web page
 * with status 200), `bytesPerSecond`, `noRanges`, `delay` (milliseconds), `after` (a promise to wait for). The option `bytesPerSecond` is the
 * speed that all requests share.
 */
export async function serve(folders, { faults = () => ({}), headers = {}, bytesPerSecond } = {}) {
  const log = [];
  const hanging = new Set();
  let lineIsFree = 0;
  const prefixes = Object.keys(folders).sort((a, b) => b.length - a.length);
  const server = createServer(async (request, response) => {
    const path = decodeURIComponent(new URL(request.url, "http://x").pathname);
    const fault = faults({ path, range: request.headers.range, count: log.filter((entry) => entry.path === path).length }) ?? {};
    const { range: wanted, authorization } = request.headers;
    const entry = { path, range: wanted, authorization, method: request.method, bytes: 0 };
    log.push(entry);
    const prefix = prefixes.find((prefix) => path.startsWith(prefix));
    let file = prefix && join(folders[prefix], normalize(path.slice(prefix.length)));
    let size;
    try {
      if (fault.delay) await new Promise((resolve) => setTimeout(resolve, fault.delay));
      await fault.after;
      let info = await stat(file);
      if (info.isDirectory()) {
        file = join(file, "index.html");
        info = await stat(file);
      }
      size = info.size;
    } catch {
      response.writeHead(404).end("not found");
      return;
    }
    if (fault.status) {
      response.writeHead(fault.status, { ...headers, ...fault.headers }).end("a fault");
      return;
    }
    if (fault.html) {
      response.writeHead(200, { "Content-Type": "text/html; charset=utf-8", ...headers }).end("<!doctype html><p>Log in to the network");
      return;
    }
    if (fault.hang !== undefined) hanging.add(response);
    if (fault.hang === 0) return;
    let [start, end] = [0, size];
    const range = !fault.noRanges && /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? "");
    if (range) {
      start = Number(range[1]);
      if (range[2]) end = Number(range[2]) + 1;
    }
    response.writeHead(range ? 206 : 200, {
      "Content-Type": TYPES[extname(file)] ?? "application/octet-stream",
      "Content-Length": end - start,
      ...(!fault.noRanges && { "Accept-Ranges": "bytes" }),
      ...(range && { "Content-Range": `bytes ${start}-${end - 1}/${size}` }),
      ...headers,
    });
    if (request.method === "HEAD" || start >= end) {
      response.end();
      return;
    }
    const closed = once(response, "close");
    const began = performance.now();
    for await (const chunk of createReadStream(file, { start, end: end - 1, highWaterMark: 64 << 10 })) {
      const at = start + entry.bytes;
      if (fault.corrupt >= at && fault.corrupt < at + chunk.length) chunk[fault.corrupt - at] ^= 1;
      const end = fault.drop ?? fault.hang;
      const cut = end !== undefined && entry.bytes + chunk.length >= end;
      const sent = cut ? chunk.subarray(0, end - entry.bytes) : chunk;
      if (response.destroyed) return;
      if (!response.write(sent)) await Promise.race([once(response, "drain"), closed]);
      entry.bytes += sent.length;
      if (cut) {
        // A browser that has not read the last bytes when the connection breaks loses them.
        await new Promise((resolve) => setTimeout(resolve, fault.linger ?? 20));
        if (fault.hang === undefined) response.destroy();
        return;
      }
      if (bytesPerSecond) {
        lineIsFree = Math.max(lineIsFree, performance.now()) + (sent.length / bytesPerSecond) * 1000;
        await new Promise((resolve) => setTimeout(resolve, lineIsFree - performance.now()));
      }
      if (fault.bytesPerSecond) {
        const due = (entry.bytes / fault.bytesPerSecond) * 1000 - (performance.now() - began);
        if (due > 0) await new Promise((resolve) => setTimeout(resolve, due));
      }
    }
    response.end();
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://localhost:${server.address().port}`,
    log,
    /**
     * Ends the requests that hang. Chromium continues to wait for the script of a worker that was terminated, and delays each further request
     * of that address by 20 s.
     */
    endHanging: () => {
      for (const response of hanging) response.destroy();
      hanging.clear();
    },
    close: () => new Promise((resolve) => {
      server.closeAllConnections();
      server.close(resolve);
    }),
  };
}
