import type { Precision } from "./types.js";

/** What this browser can do. */
export interface Support {
  /** Whether models can run here at all. */
  supported: boolean;
  /** Why not, and what the user can do. */
  reason?: string;
  /** Precisions that run here, best first. Smaller ones need less memory; see `maxWeightBytes`. */
  precisions: Precision[];
  /** The adapter as the browser describes it; fields are often empty. */
  adapter?: { vendor: string; architecture: string; description: string; software: boolean };
  features?: { shaderF16: boolean; subgroups: boolean; timestampQuery: boolean };
  limits?: { maxBufferSize: number; maxStorageBufferBindingSize: number };
  /** A guess at the weights that fit, in bytes, from the device's memory: browsers tell no one how much the GPU has, and only
   *  Chromium tells the device's. */
  maxWeightBytes?: number;
  /** Room for files on this device, in bytes. */
  storage?: { quota: number; usage: number };
}

/** What is to be run. */
export interface SupportQuestion {
  /** Bytes of the model's weights in f16, or about twice its parameters: precisions that are too large for them are left out. */
  weightBytes?: number;
}

/** Bytes of a weight, beside those of f16. */
const SHARES: Record<Precision, number> = { f32: 2, f16: 1, q8: 0.53, q4: 0.31 };

/** Says whether this browser can run models, and why not. */
export async function support({ weightBytes = 0 }: SupportQuestion = {}): Promise<Support> {
  const no = (reason: string): Support => ({ supported: false, reason, precisions: [] });
  if (!globalThis.isSecureContext) {
    return no("WebGPU works only on pages that come over https, or from localhost.");
  }
  if (!navigator.gpu) {
    return no(
      "This browser has no WebGPU. Chrome and Edge 113 or newer, Firefox 141 or newer on Windows (145 on macOS) and Safari 26 " +
        "have it; on Linux, Chrome may need chrome://flags/#enable-unsafe-webgpu.",
    );
  }
  const adapter = await navigator.gpu.requestAdapter({ powerPreference: "high-performance" }).catch(() => null);
  if (!adapter) {
    return no(
      "WebGPU is there, but it finds no GPU. A newer graphics driver may help; chrome://gpu tells what is switched off and why.",
    );
  }
  const { vendor, architecture, description } = adapter.info;
  const { maxBufferSize, maxStorageBufferBindingSize } = adapter.limits;
  const software = (adapter.info as { isFallbackAdapter?: boolean }).isFallbackAdapter ?? false;
  const result: Support = {
    supported: true,
    // Every kernel has a form that needs only WebGPU's defaults.
    precisions: ["f32", "f16", "q8", "q4"],
    adapter: { vendor, architecture, description, software },
    features: {
      shaderF16: adapter.features.has("shader-f16"),
      subgroups: adapter.features.has("subgroups"),
      timestampQuery: adapter.features.has("timestamp-query"),
    },
    limits: { maxBufferSize, maxStorageBufferBindingSize },
  };
  // In GiB, rounded to a power of two, at most 8; only Chromium tells.
  const memory = (navigator as { deviceMemory?: number }).deviceMemory;
  if (memory !== undefined) {
    const most = (result.maxWeightBytes = (memory * 2 ** 30) / 2);
    result.precisions = result.precisions.filter((precision) => weightBytes * SHARES[precision] <= most);
    if (result.precisions.length === 0) {
      result.supported = false;
      result.reason = `The model is probably too large for this device: it takes ${Math.ceil((weightBytes * SHARES.q4) / 1e6)} MB at the least.`;
    }
  }
  const { quota, usage } = (await navigator.storage?.estimate?.()) ?? {};
  if (quota !== undefined && usage !== undefined) result.storage = { quota, usage };
  return result;
}
