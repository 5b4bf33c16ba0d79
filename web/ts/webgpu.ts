// WebGPU of the worker: what wgpu needs from the browser, and what identifies a device.

import { adapterInfo } from "./support.js";

const requestAdapter = (): Promise<GPUAdapter | null> => navigator.gpu.requestAdapter({ powerPreference: "high-performance" });

/** The WGSL functions that Chrome 123 added. A function of this name in the shader itself hides the browser's. */
const PACKED_DOT_PRODUCTS: Record<string, string> = {
  pack4xI8: "fn pack4xI8(e: vec4<i32>) -> u32 { let b = vec4<u32>(e & vec4(255)) << vec4(0u, 8u, 16u, 24u); return b.x | b.y | b.z | b.w; }",
  dot4I8Packed: `fn dot4I8Packed(a: u32, b: u32) -> i32 {
    let shift = vec4(24u, 16u, 8u, 0u);
    let products = ((vec4(i32(a)) << shift) >> vec4(24u)) * ((vec4(i32(b)) << shift) >> vec4(24u));
    return products.x + products.y + products.z + products.w;
  }`,
};

/** Whether WGSL has {@link PACKED_DOT_PRODUCTS}. */
const hasPackedDotProducts = (): boolean => navigator.gpu.wgslLanguageFeatures?.has("packed_4x8_integer_dot_product") ?? false;

/** Gives the oldest browsers that the package supports what wgpu and the kernels need. */
export function adaptWebGpu(): void {
  if (typeof GPUAdapter === "undefined") return;
  const adapter = GPUAdapter.prototype;
  // `info` needs Chrome 127, `isFallbackAdapter` in it Chrome 136. wgpu reads both.
  const info = Object.getOwnPropertyDescriptor(adapter, "info")?.get;
  Object.defineProperty(adapter, "info", {
    configurable: true,
    get(this: GPUAdapter) {
      const known = (info?.call(this) ?? { vendor: "", architecture: "", device: "", description: "" }) as GPUAdapterInfo;
      if (!("isFallbackAdapter" in known)) Object.defineProperty(known, "isFallbackAdapter", { value: adapterInfo(this, known).isFallbackAdapter });
      return known;
    },
  });
  // wgpu requests all limits that it knows, and browsers refuse those that they do not know (Chrome before 120 `maxBindGroupsPlusVertexBuffers`).
  replace(adapter, "requestDevice", (request) => async function (this: GPUAdapter, descriptor) {
    const requiredLimits = Object.entries(descriptor?.requiredLimits ?? {}).filter(([name]) => name in this.limits);
    const device = await request.call(this, { ...descriptor, requiredLimits: Object.fromEntries(requiredLimits) });
    if (!("onuncapturederror" in device)) reportErrors(device);
    return device;
  });
  if (hasPackedDotProducts()) return;
  replace(GPUDevice.prototype, "createShaderModule", (create) => function (this: GPUDevice, descriptor) {
    const missing = Object.entries(PACKED_DOT_PRODUCTS).filter(([name]) => descriptor.code.includes(`${name}(`));
    return create.call(this, { ...descriptor, code: [descriptor.code, ...missing.map(([, code]) => code)].join("\n") });
  });
}

/** Replaces a method of a prototype. */
function replace<T, K extends keyof T>(prototype: T, name: K, by: (method: T[K]) => T[K]): void {
  prototype[name] = by(prototype[name]);
}

/** Safari before 27 has no event for errors that no scope captures. wgpu waits for it: an allocation that fails would go unnoticed. */
function reportErrors(device: GPUDevice): void {
  const filters: GPUErrorFilter[] = ["out-of-memory", "validation"];
  const report = (error: GPUError | null) => {
    if (error) (device as unknown as { onuncapturederror?: (event: { error: GPUError }) => void }).onuncapturederror?.({ error });
  };
  const watch = <A extends unknown[], R>(call: (...args: A) => R) => (...args: A): R => {
    for (const filter of filters) device.pushErrorScope(filter);
    try {
      return call(...args);
    } finally {
      for (const _ of filters) device.popErrorScope().then(report, () => undefined);
    }
  };
  device.createBuffer = watch(device.createBuffer.bind(device));
  device.createShaderModule = watch(device.createShaderModule.bind(device));
  device.createComputePipeline = watch(device.createComputePipeline.bind(device));
  device.createBindGroup = watch(device.createBindGroup.bind(device));
  device.queue.submit = watch(device.queue.submit.bind(device.queue));
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
  const { vendor, architecture, isFallbackAdapter } = adapterInfo(await requestAdapter());
  const without = WITHOUT_DOTS[vendor];
  return (
    without !== undefined && hasPackedDotProducts() && !isFallbackAdapter && !without.test(architecture) && !/\bMac/.test(navigator.userAgent)
  );
}

/**
 * Enables the feature `subgroups` on new devices if the adapter has it. Returns whether it has. wgpu's web backend does not know the
 * feature (https://github.com/gfx-rs/wgpu/issues/10146), but passes shaders on unchanged.
 */
export async function enableSubgroups(): Promise<boolean> {
  const adapter = await requestAdapter();
  if (!adapter?.features.has("subgroups")) return false;
  if (!enablesSubgroups) {
    enablesSubgroups = true;
    replace(GPUAdapter.prototype, "requestDevice", (request) => function (this: GPUAdapter, descriptor) {
      const features = new Set<string>(descriptor?.requiredFeatures);
      if (this.features.has("subgroups")) features.add("subgroups");
      return request.call(this, { ...descriptor, requiredFeatures: [...features] as GPUFeatureName[] });
    });
  }
  return true;
}

let enablesSubgroups = false;

/** Throws an error when the loss of the device, which can be its cause and comes after it in Firefox, has been reported. */
async function afterLoss(device: GPUDevice, error: unknown): Promise<never> {
  await Promise.race([device.lost, new Promise((resolve) => setTimeout(resolve, 1000))]);
  throw error;
}

/**
 * Makes results arrive in Firefox when they are ready. Firefox looks for finished work at each submission, otherwise only every 100 ms,
 * which would take longer than a token. Empty submissions make it look while a result is awaited.
 */
export function pollResults(): void {
  if (!navigator.userAgent.includes("Firefox/") || typeof GPUBuffer === "undefined") return;
  /** Number of awaited results of each queue. */
  const waiting = new Map<GPUQueue, number>();
  let isPolling = false;
  // A timer that a timer starts waits for at least 4 ms; one that a message starts does not.
  const { port1, port2 } = new MessageChannel();
  const wait = (): unknown => setTimeout(() => port2.postMessage(undefined), 1);
  port1.onmessage = () => {
    for (const queue of waiting.keys()) queue.submit([]);
    isPolling = waiting.size > 0;
    if (isPolling) wait();
  };
  const awaited = async (queue: GPUQueue, result: Promise<undefined>): Promise<undefined> => {
    waiting.set(queue, (waiting.get(queue) ?? 0) + 1);
    if (!isPolling) wait();
    isPolling = true;
    try {
      return await result;
    } finally {
      const others = (waiting.get(queue) ?? 1) - 1;
      if (others > 0) waiting.set(queue, others);
      else waiting.delete(queue);
    }
  };

  const devices = new WeakMap<GPUBuffer, GPUDevice>();
  replace(GPUDevice.prototype, "createBuffer", (create) => function (this: GPUDevice, descriptor) {
    const buffer = create.call(this, descriptor);
    if (descriptor.usage & GPUBufferUsage.MAP_READ) devices.set(buffer, this);
    return buffer;
  });
  replace(GPUBuffer.prototype, "mapAsync", (map) => function (this: GPUBuffer, ...range) {
    const device = devices.get(this);
    const mapped = map.apply(this, range);
    return device ? awaited(device.queue, mapped).catch((error: unknown) => afterLoss(device, error)) : mapped;
  });
  replace(GPUQueue.prototype, "onSubmittedWorkDone", (done) => function (this: GPUQueue) {
    return awaited(this, done.call(this));
  });
}
