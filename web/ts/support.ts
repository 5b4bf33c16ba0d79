import type { MgmErrorCode } from "./errors.js";
import type { Precision } from "./types.js";

/** What this browser can run: see {@link Mgm.support}. */
export interface Support {
  /** Whether models can run here. */
  supported: boolean;
  /** If not: why, and what the user can do. */
  reason?: string;
  /** The code of the error that {@link Mgm.load} throws for this reason. Absent if only the model is too large. */
  code?: Extract<MgmErrorCode, "unsupported-browser" | "no-adapter">;
  /** Precisions at which the model runs here, most accurate first. Later ones need less memory: see `maxWeightBytes`. */
  precisions: Precision[];
  /** The adapter as the browser describes it; strings are often empty. `software` is a software (CPU) adapter. */
  adapter?: { vendor: string; architecture: string; description: string; software: boolean };
  features?: { shaderF16: boolean; subgroups: boolean; timestampQuery: boolean };
  /** In bytes. */
  limits?: { maxBufferSize: number; maxStorageBufferBindingSize: number };
  /**
   * Estimate of the largest weights that fit, in bytes: half of the device's memory, which only Chromium reports, and 1 GiB on iPhones and
   * iPads, which end a page that takes more than about 1.5 GB. Absent on devices with 8 GiB or more: browsers report larger memories as
   * 8 GiB. Browsers do not report GPU memory. {@link Mgm.load} does not apply the estimate.
   */
  maxWeightBytes?: number;
  /** Whether the page can store models on this device. Many private windows refuse it: models then load without being stored. */
  canStore?: boolean;
  /** Storage for files on this device, in bytes. */
  storage?: { quota: number; usage: number };
}

/** What to run: see {@link Mgm.support}. */
export interface SupportQuestion {
  /** Size of the model's weights at f16, in bytes (twice its number of parameters). Precisions that do not fit are omitted. */
  weightBytes?: number;
}

/** Bytes of a weight relative to f16. */
const RELATIVE_BYTES: Record<Precision, number> = { f32: 2, f16: 1, q8: 0.53, q4: 0.31 };

/** Describes an adapter. Chrome before 127 has no `GPUAdapter.info`, and before 136 `isFallbackAdapter` is not in it but in the adapter. */
export function adapterInfo(adapter: GPUAdapter | null, info = adapter?.info): Pick<GPUAdapterInfo, "vendor" | "architecture" | "device" | "description" | "isFallbackAdapter"> {
  const { vendor = "", architecture = "", device = "", description = "", isFallbackAdapter } = info ?? {};
  const software = isFallbackAdapter ?? (adapter as { isFallbackAdapter?: boolean } | null)?.isFallbackAdapter ?? false;
  return { vendor, architecture, device, description, isFallbackAdapter: software };
}

/** Says whether this browser can run models, and why not. */
export async function support({ weightBytes = 0 }: SupportQuestion = {}): Promise<Support> {
  const no = (reason: string, code: NonNullable<Support["code"]> = "unsupported-browser"): Support =>
    ({ supported: false, reason, code, precisions: [] });
  if (typeof navigator === "undefined" || typeof Worker === "undefined") {
    return no("This is not a browser: models run on WebGPU in a page or a worker.");
  }
  if (!globalThis.isSecureContext) {
    return no("WebGPU needs a page that is served over https, or from localhost.");
  }
  if (globalThis.origin === "null") {
    return no("Workers of this page have no WebGPU: it is in a sandboxed frame without allow-same-origin, or was opened as a file.");
  }
  if (!navigator.gpu) {
    return no(
      "This browser has no WebGPU. Chrome and Edge 113 or newer, Firefox 141 or newer on Windows (145 on macOS) and Safari 26 " +
        "have it; on Linux, Chrome may need chrome://flags/#enable-unsafe-webgpu.",
    );
  }
  const adapter = await navigator.gpu.requestAdapter({ powerPreference: "high-performance" }).catch(() => null);
  if (!adapter) {
    const reason = "This browser has WebGPU but found no GPU. Update the graphics driver; chrome://gpu lists what is disabled and why.";
    return no(reason, "no-adapter");
  }
  const { vendor, architecture, description, isFallbackAdapter: software } = adapterInfo(adapter);
  const { maxBufferSize, maxStorageBufferBindingSize } = adapter.limits;
  const result: Support = {
    supported: true,
    // Every kernel has a variant that needs only WebGPU's default limits.
    precisions: ["f32", "f16", "q8", "q4"],
    adapter: { vendor, architecture, description, software },
    features: {
      shaderF16: adapter.features.has("shader-f16"),
      subgroups: adapter.features.has("subgroups"),
      timestampQuery: adapter.features.has("timestamp-query"),
    },
    limits: { maxBufferSize, maxStorageBufferBindingSize },
  };
  // In GiB, rounded to a power of two; only in Chromium. Most versions report larger memories as 8.
  const memory = (navigator as { deviceMemory?: number }).deviceMemory;
  const limit = isIos() ? 2 : memory;
  if (limit !== undefined && limit < 8) {
    const maxWeightBytes = (result.maxWeightBytes = (limit * 2 ** 30) / 2);
    result.precisions = result.precisions.filter((precision) => weightBytes * RELATIVE_BYTES[precision] <= maxWeightBytes);
    if (result.precisions.length === 0) {
      result.supported = false;
      const megabytes = (bytes: number) => `${Math.ceil(bytes / 1e6)} MB`;
      result.reason =
        `The model is probably too large for this device: its weights take at least ${megabytes(weightBytes * RELATIVE_BYTES.q4)}, ` +
        `and a page here can use about ${megabytes(maxWeightBytes)} for them.`;
    }
  }
  result.canStore = await canStore();
  const storage = await storageEstimate();
  if (storage) result.storage = storage;
  return result;
}

/** iPads say that they are Macs, which have no touch screens. */
const isIos = (): boolean => /iPhone|iPad|iPod/.test(navigator.userAgent) || (/Mac/.test(navigator.userAgent) && navigator.maxTouchPoints > 1);

async function canStore(): Promise<boolean> {
  try {
    return (await navigator.storage.getDirectory()) !== undefined;
  } catch {
    return false;
  }
}

/** Storage in bytes; nothing where the browser does not report it. */
export async function storageEstimate(): Promise<{ quota: number; usage: number } | undefined> {
  try {
    const { quota, usage } = await navigator.storage.estimate();
    return quota !== undefined && usage !== undefined ? { quota, usage } : undefined;
  } catch {
    return undefined;
  }
}
