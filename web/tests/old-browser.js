// Takes from a page or a worker what the oldest supported browsers lack: each name below is missing in Chrome 113, Firefox 141 or Safari 26
// (MDN's browser-compat-data; of the interfaces that the package uses). Tests put this script before the package's own.
{
  const missing = {
    "AbortSignal": "any",
    "Array": "fromAsync",
    "ArrayBuffer.prototype": "detached transfer transferToFixedLength",
    "Atomics": "pause waitAsync",
    "Blob.prototype": "bytes textStream",
    "DataView.prototype": "getFloat16 setFloat16",
    "Error": "isError",
    "EventTarget.prototype": "when",
    "FileSystemHandle.prototype": "queryPermission remove requestPermission",
    "GPU.prototype": "wgslLanguageFeatures",
    "GPUAdapter.prototype": "info requestAdapterInfo",
    "GPUAdapterInfo.prototype": "isFallbackAdapter subgroupMaxSize subgroupMinSize",
    "GPUCommandEncoder.prototype": "writeTimestamp",
    "GPUComputePassEncoder.prototype": "setImmediates writeTimestamp",
    "GPUDevice.prototype": "adapterInfo importExternalTexture onuncapturederror",
    "GPUSupportedLimits.prototype": "maxBindGroupsPlusVertexBuffers maxImmediateSize maxInterStageShaderComponents " +
      "maxStorageBuffersInFragmentStage maxStorageBuffersInVertexStage maxStorageTexturesInFragmentStage maxStorageTexturesInVertexStage",
    "ImageData.prototype": "colorSpace pixelFormat",
    "Iterator": "concat from zip zipKeyed",
    "Iterator.prototype": "drop every filter find flatMap forEach includes join map reduce some take toArray",
    "JSON": "isRawJSON rawJSON",
    "Map": "groupBy",
    "Map.prototype": "getOrInsert getOrInsertComputed",
    "Math": "f16round sumPrecise",
    "Navigator.prototype": "connection deviceMemory getBattery scheduling storageBuckets userAgentData",
    "Object": "groupBy",
    "OffscreenCanvasRenderingContext2D.prototype": "filter getContextAttributes imageSmoothingQuality isContextLost",
    "Performance.prototype": "measureUserAgentSpecificMemory memory",
    "Promise": "allKeyed allSettledKeyed try withResolvers",
    "ReadableStream": "from",
    "ReadableStream.prototype": "values",
    "RegExp": "escape",
    "Request.prototype": "body bytes duplex",
    "Response.prototype": "bytes textStream",
    "Set.prototype": "difference intersection isDisjointFrom isSubsetOf isSupersetOf symmetricDifference union",
    "URL": "canParse parse",
    "Uint8Array": "fromBase64 fromHex",
    "Uint8Array.prototype": "setFromBase64 setFromHex toBase64 toHex",
    "WeakMap.prototype": "getOrInsert getOrInsertComputed",
    "WorkerGlobalScope.prototype": "onoffline ononline",
    "WorkerNavigator.prototype": "connection deviceMemory storageBuckets userAgentData",
    "self": "AsyncDisposableStack DisposableStack FileSystemObserver Float16Array GPUError QuotaExceededError ReadableStreamBYOBReader Scheduler " +
      "SuppressedError Temporal URLPattern WGSLLanguageFeatures scheduler trustedTypes",
  };
  const prototypes = { adapter: self.GPUAdapter?.prototype, device: self.GPUDevice?.prototype };
  const limits = missing["GPUSupportedLimits.prototype"].split(" ");
  for (const [path, names] of Object.entries(missing)) {
    const owner = path.split(".").reduce((value, name) => value?.[name], self);
    for (const name of names.split(" ")) if (owner && !Reflect.deleteProperty(owner, name)) throw new Error(`${path} keeps ${name}`);
  }
  delete ReadableStream.prototype[Symbol.asyncIterator];
  // The properties of Symbol cannot be deleted.
  const known = Object.entries(Object.getOwnPropertyDescriptors(Symbol)).filter(([name]) => !/^(asyncDispose|dispose|length|name)$/.test(name));
  const native = Symbol;
  self.Symbol = Object.defineProperties((description) => native(description), Object.fromEntries(known));
  if (prototypes.adapter) {
    const features = "clip-distances core-features-and-limits dual-source-blending float32-blendable float32-filterable primitive-index shader-f16 " +
      "subgroup-size-control subgroups texture-formats-tier1 texture-formats-tier2 timestamp-query";
    const { get } = Object.getOwnPropertyDescriptor(prototypes.adapter, "features");
    Object.defineProperty(prototypes.adapter, "features", {
      get() {
        return new Set([...get.call(this)].filter((feature) => !features.split(" ").includes(feature)));
      },
    });
    // These were in the adapter.
    Object.defineProperty(prototypes.adapter, "isFallbackAdapter", { get: () => true });
    const { requestDevice } = prototypes.adapter;
    prototypes.adapter.requestDevice = async function (descriptor) {
      const unknown = Object.keys(descriptor?.requiredLimits ?? {}).find((name) => limits.includes(name));
      if (unknown) throw new DOMException(`The limit "${unknown}" is not recognized.`, "OperationError");
      return requestDevice.call(this, descriptor);
    };
    const { createShaderModule } = prototypes.device;
    prototypes.device.createShaderModule = function (descriptor) {
      const [, name] = /\b(dot4[UI]8Packed|(?:un)?pack4x[IU]8(?:Clamp)?)\(/.exec(descriptor.code) ?? [];
      if (name && !descriptor.code.includes(`fn ${name}(`)) throw new Error(`unresolved call target '${name}'`);
      return createShaderModule.call(this, descriptor);
    };
  }
}
