// WebGPU of the worker: what wgpu needs from the browser, and what identifies a device.

import { adapterInfo } from "./support.js";

const requestAdapter = (): Promise<GPUAdapter | null> => navigator.gpu.requestAdapter({ powerPreference: "high-performance" });

/** wgpu reads `GPUAdapter.info`, which the first versions with WebGPU do not have. */
export function fillInAdapterInfo(): void {
  if (typeof GPUAdapter === "undefined" || "info" in GPUAdapter.prototype) return;
  Object.defineProperty(GPUAdapter.prototype, "info", { get: () => ({ vendor: "", architecture: "", device: "", description: "" }) });
}

/**
 * Identifies a device as far as the browser describes it; the core sees neither vendor nor driver here. Includes the browser's version,
 * because a new version can have another shader compiler.
 */
export async function deviceId(): Promise<string> {
  const { vendor, architecture, device, description } = adapterInfo(await requestAdapter());
  return [vendor, architecture, device, description, navigator.userAgent].join("\n");
}

/** Architectures, as browsers name them, without 8-bit dot products in hardware, of vendors whose newer GPUs have them. */
const WITHOUT_DOTS: Record<string, RegExp> = {
  amd: /^(gcn-|rdna-1$|$)/,
  intel: /^(gen-([4-9]|11)|$)/,
  nvidia: /^(fermi|kepler|maxwell|$)/,
};

/**
 * Whether the GPU has 8-bit dot products in hardware. No browser reports that, so the architecture decides. Metal has none; Qualcomm's
 * and Arm's GPUs are left to {@link Mgm.tune}.
 */
export async function hasNativeDots(): Promise<boolean> {
  const { vendor = "", architecture = "", isFallbackAdapter = false } = adapterInfo(await requestAdapter());
  const without = WITHOUT_DOTS[vendor];
  return without !== undefined && !isFallbackAdapter && !without.test(architecture) && !/\bMac/.test(navigator.userAgent);
}

/**
 * Enables the feature `subgroups` on new devices if the adapter has it. Returns whether it has. wgpu's web backend does not know the
 * feature (https://github.com/gfx-rs/wgpu/issues/10146), but passes shaders on unchanged.
 */
export async function enableSubgroups(): Promise<boolean> {
  const adapter = await requestAdapter();
  if (!adapter?.features.has("subgroups")) return false;
  const prototype = GPUAdapter.prototype as GPUAdapter & { mgmEnablesSubgroups?: boolean };
  if (!prototype.mgmEnablesSubgroups) {
    const request = prototype.requestDevice;
    prototype.requestDevice = function (descriptor) {
      const features = new Set<string>(descriptor?.requiredFeatures);
      if (this.features.has("subgroups")) features.add("subgroups");
      return request.call(this, { ...descriptor, requiredFeatures: [...features] as GPUFeatureName[] });
    };
    prototype.mgmEnablesSubgroups = true;
  }
  return true;
}
