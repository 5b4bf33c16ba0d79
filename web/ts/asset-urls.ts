import { baseUrl, env } from "./env.js";
import { MgmError } from "./errors.js";

/** The classic script that contains this module, if a bundler wrote one. Known only while the script runs for the first time. */
const scriptUrl = (globalThis.document?.currentScript as { src?: string } | null | undefined)?.src;

/** The addresses of the worker's script and of the wasm module. */
export interface AssetUrls {
  workerUrl: string;
  wasmUrl: string;
}

export function assetUrls(): AssetUrls {
  const find = (name: string, given: string | URL | undefined, locate: () => URL) => {
    try {
      if (given !== undefined) return new URL(typeof given === "string" ? given : given.href, baseUrl()).href;
      try {
        // Next.js gives an object that only resembles a URL: its `href` is relative, and not to `<base>`.
        return new URL(locate().href, globalThis.location?.href).href;
      } catch (error) {
        // In a classic script, `import.meta.url` is undefined.
        if (!scriptUrl) throw error;
        return new URL(name, scriptUrl).href;
      }
    } catch (cause) {
      const message = `the address of ${name} is unknown: this bundler does not support new URL(…, import.meta.url), so set env.workerUrl and env.wasmUrl`;
      throw new MgmError("invalid-argument", message, { cause });
    }
  };
  return {
    workerUrl: find("worker.js", env.workerUrl, () => new URL("./worker.js", import.meta.url)),
    wasmUrl: find("mgm_web_bg.wasm", env.wasmUrl, () => new URL("./mgm_web_bg.wasm", import.meta.url)),
  };
}
