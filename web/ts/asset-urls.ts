import { baseUrl, env } from "./env.js";
import { MgmError } from "./errors.js";

/** The addresses of the worker's script and of the wasm module. */
export function assetUrls(): { workerUrl: string; wasmUrl: string } {
  const find = (name: string, locate: () => string | URL) => {
    try {
      const url = locate();
      // Next.js gives an object that only resembles a URL: its `href` is relative.
      return new URL(typeof url === "string" ? url : url.href, baseUrl()).href;
    } catch (cause) {
      const message = `the address of ${name} is unknown: this bundler does not support new URL(…, import.meta.url), so set env.workerUrl and env.wasmUrl`;
      throw new MgmError("invalid-argument", message, { cause });
    }
  };
  return {
    workerUrl: find("worker.js", () => env.workerUrl ?? new URL("./worker.js", import.meta.url)),
    wasmUrl: find("mgm_web_bg.wasm", () => env.wasmUrl ?? new URL("./mgm_web_bg.wasm", import.meta.url)),
  };
}
