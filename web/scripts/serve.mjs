// Serves the demo page with the bundled models and the bundles in a folder: serve.mjs [MODELS] [PORT].
// No package: a static server cannot merge several folders and list their models in `models.json`.

import { existsSync, readdirSync, statSync } from "node:fs";
import { createReadStream } from "node:fs";
import { createServer } from "node:http";
import { dirname, extname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";
import { bundled, modelEntry, released } from "./models.mjs";

const web = dirname(dirname(fileURLToPath(import.meta.url)));
const page = join(web, "demo", "dist");
const folders = [bundled, process.argv[2]].filter((folder) => folder && existsSync(folder));
const port = Number(process.argv[3] ?? process.env.PORT ?? 8080);
const TYPES = {
  ".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css", ".json": "application/json",
  ".wasm": "application/wasm", ".svg": "image/svg+xml",
};

/** The content of `models.json`. */
function listed() {
  const all = folders.flatMap((folder) => readdirSync(folder).flatMap((name) => modelEntry(folder, name)));
  return [...all.filter(({ url }, index) => all.findIndex((other) => other.url === url) === index), ...released];
}

/** The file at a path of the page or of a model. */
function fileOf(path) {
  if (!path.startsWith("/models/")) return join(page, path);
  const inFolders = folders.map((folder) => join(folder, path.slice("/models/".length)));
  return inFolders.find((file) => existsSync(file)) ?? join(page, path);
}

createServer((request, response) => {
  const path = normalize(decodeURIComponent(new URL(request.url, "http://x").pathname));
  if (path === "/models.json") {
    response.writeHead(200, { "Content-Type": "application/json" }).end(JSON.stringify(listed()));
    return;
  }
  let file = fileOf(path);
  if (existsSync(file) && statSync(file).isDirectory()) file = join(file, "index.html");
  if (!existsSync(file)) {
    response.writeHead(404).end("not found");
    return;
  }
  const size = statSync(file).size;
  const range = /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? "");
  const start = range ? Number(range[1]) : 0;
  const end = range?.[2] ? Math.min(Number(range[2]), size - 1) : size - 1;
  if (start > end && size > 0) {
    response.writeHead(416, { "Content-Range": `bytes */${size}` }).end();
    return;
  }
  response.writeHead(range ? 206 : 200, {
    "Content-Type": TYPES[extname(file)] ?? "application/octet-stream",
    "Content-Length": size === 0 ? 0 : end - start + 1,
    "Accept-Ranges": "bytes",
    ...(range && { "Content-Range": `bytes ${start}-${end}/${size}` }),
  });
  if (size === 0 || request.method === "HEAD") response.end();
  else createReadStream(file, { start, end }).on("error", () => response.destroy()).pipe(response);
}).listen(port, "127.0.0.1", () => console.log(`http://localhost:${port}/ (stop with Ctrl-C)`));
