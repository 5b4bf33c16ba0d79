// The packed package, and projects that install it.

import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { web } from "./browser.mjs";

/** Packs the package as it is in dist/: the path of the tarball, its files, and its package.json. */
export function pack(folder) {
  const options = ["--json", "--ignore-scripts", "--pack-destination", folder];
  const report = JSON.parse(execFileSync("npm", ["pack", ...options], { cwd: web, encoding: "utf8", stdio: ["ignore", "pipe", "inherit"] }));
  // npm 11 reports a list, npm 12 an object with names as keys.
  const [{ filename, files }] = Object.values(report);
  return {
    tarball: join(folder, filename),
    files: files.map(({ path }) => path),
    metadata: JSON.parse(readFileSync(join(web, "package.json"))),
  };
}

/** Installs dependencies in a project's folder. Takes packages from npm's cache where it has them. */
export function install(project, ...more) {
  const options = ["--prefer-offline", "--loglevel", "error", "--no-fund", "--no-audit"];
  execFileSync("npm", ["install", ...options, ...more], { cwd: project, stdio: ["ignore", "ignore", "inherit"] });
}
