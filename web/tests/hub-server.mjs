// A server that behaves as the Hugging Face Hub does: its API, files at commits, and redirects of large files to another host.

import { createHash } from "node:crypto";
import { readdirSync, readFileSync, statSync } from "node:fs";
import { createServer } from "node:http";
import { join, relative } from "node:path";
import { serve } from "./server.mjs";

/** Files from this size on are on the other host, as the Hub's LFS files are. */
const LARGE = 4096;
const CORS = { "Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": "Content-Range, ETag, X-Repo-Commit" };

const filesIn = (folder) =>
  readdirSync(folder, { recursive: true })
    .map((name) => join(folder, name))
    .filter((path) => statSync(path).isFile());

/**
 * Serves folders as repositories: `{ "owner/name": "/path" }`. `token` makes them private. `faults` are those of the other host: see
 * `serve`. `log` has the requests to the hub, `files.log` those to the other host.
 */
export async function serveHub(repositories, { token, faults } = {}) {
  const folders = Object.fromEntries(Object.entries(repositories).map(([name, folder]) => [`/${name}/`, folder]));
  const files = await serve(folders, { faults, headers: CORS });
  const log = [];
  const commitOf = (name) => createHash("sha1").update(name).digest("hex");
  const server = createServer((request, response) => {
    const path = decodeURIComponent(new URL(request.url, "http://x").pathname);
    const { authorization, range } = request.headers;
    if (request.method === "OPTIONS") {
      response.writeHead(204, { ...CORS, "Access-Control-Allow-Headers": "authorization, range" }).end();
      return;
    }
    log.push({ path, authorization, range });
    const end = (status, headers = {}, body = "") => response.writeHead(status, { ...CORS, ...headers }).end(body);
    const [, api, apiRevision] = /^\/api\/models\/([^/]+\/[^/]+)\/revision\/(.+)$/.exec(path) ?? [];
    const [, repo, revision, file] = /^\/([^/]+\/[^/]+)\/resolve\/([^/]+)\/(.+)$/.exec(path) ?? [];
    const name = api ?? repo;
    const folder = repositories[name];
    if (!folder || (token !== undefined && authorization !== `Bearer ${token}`)) return end(401);
    if (!["main", commitOf(name)].includes(apiRevision ?? revision)) return end(404);
    if (api) {
      const siblings = filesIn(folder).map((path) => {
        const size = statSync(path).size;
        return { rfilename: relative(folder, path), size, ...(size >= LARGE && { lfs: { size, sha256: "0".repeat(64) } }) };
      });
      return end(200, { "Content-Type": "application/json" }, JSON.stringify({ id: name, sha: commitOf(name), siblings }));
    }
    const target = filesIn(folder).find((path) => relative(folder, path) === file);
    if (!target) return end(404);
    const headers = { "X-Repo-Commit": commitOf(name), ETag: `"${createHash("sha1").update(target).digest("hex")}"` };
    if (statSync(target).size >= LARGE) return end(302, { ...headers, Location: `${files.url}/${name}/${encodeURI(file)}?signature=x` });
    const bytes = readFileSync(target);
    const [, first, last] = /^bytes=(\d+)-(\d*)$/.exec(range ?? "") ?? [];
    if (first === undefined) return end(200, headers, bytes);
    const until = last ? Number(last) + 1 : bytes.length;
    end(206, { ...headers, "Content-Range": `bytes ${first}-${until - 1}/${bytes.length}` }, bytes.subarray(Number(first), until));
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://localhost:${server.address().port}`,
    log,
    files,
    close: async () => {
      server.closeAllConnections();
      await Promise.all([files.close(), new Promise((resolve) => server.close(resolve))]);
    },
  };
}
