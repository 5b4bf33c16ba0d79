// Generates one image: progress, pixels, PNG file. For the worker.

import { toPng } from "./png.js";
import type { CallContext } from "./models.js";
import type { ImageCall, InitialImage } from "./protocol.js";
import type { ImageModel } from "./wasm/mgm_web.js";
import type { GeneratedImage, ImageStep, Precision } from "./types.js";

/** The core's report of an image. */
interface ImageReport {
  settings: {
    prompt: string; negative_prompt: string | null; num_inference_steps: number; guidance_scale: number; width: number; height: number; scheduler: string;
    seed: number; strength: number | null; precision: Precision;
  };
  /** The settings in the format of other Stable Diffusion programs. */
  parameters: string;
  promptCut: string | null;
}

type Pixels = { width: number; height: number; data: Uint8ClampedArray<ArrayBuffer> };

const toImageData = ({ data, width, height }: Pixels) => new ImageData(data, width, height);

export async function generateImage(
  model: ImageModel,
  call: ImageCall & { prompt: string },
  { image, mask }: InitialImage,
  { signal, reporter }: CallContext,
  onStep: (step: ImageStep) => void,
): Promise<GeneratedImage> {
  const started = performance.now();
  const report = reporter("load");
  let [part, total, loaded] = ["", 0, 0];
  let step = { done: 0, total: 0 };
  /** The first finished step: it takes longer than the others and does not count. */
  let first: { done: number; at: number } | undefined;
  let stepMs = 0;
  /** A part can be complete before `total`: the autoencoder's encoder is loaded only for image to image. */
  const endPart = () => {
    if (loaded < total) report(part, total, total);
    loaded = total;
  };
  const onEvent = (name: string, value: unknown): boolean => {
    switch (name) {
      case "loading":
        endPart();
        [part, loaded, total] = [value as string, 0, 0];
        break;
      case "total":
        total = value as number;
        break;
      case "loaded":
        loaded += value as number;
        report(part, Math.min(loaded, total), total);
        break;
      case "step": {
        endPart();
        const [done = 0, all = 0] = value as number[];
        step = { done, total: all };
        const now = performance.now();
        if (first && done > first.done) stepMs = (now - first.at) / (done - first.done);
        if (done > 0) first ??= { done, at: now };
        // With previews, the step is reported when its preview arrives.
        if (!call.previews || done === 0) onStep(step);
        break;
      }
      case "decoding":
        endPart();
        break;
      case "preview":
        onStep({ ...step, preview: toImageData(value as Pixels) });
        break;
    }
    return !signal.aborted;
  };
  const generated = (await model.generate(JSON.stringify(call), image, mask, onEvent)) as Pixels & { report: string };
  const { settings, parameters, promptCut } = JSON.parse(generated.report) as ImageReport;
  const pixels = toImageData(generated);
  const { prompt, negative_prompt: negativePrompt, num_inference_steps: numInferenceSteps, guidance_scale: guidanceScale, width, height, scheduler, seed, strength, precision } = settings;
  return {
    pixels,
    // The same text chunks as in the files of `mgm generate`.
    png: await toPng(pixels, { parameters, mgm: JSON.stringify(settings) }),
    settings: {
      prompt, numInferenceSteps, guidanceScale, width, height, scheduler, seed, precision,
      ...(negativePrompt !== null && { negativePrompt }),
      ...(strength !== null && { strength }),
    },
    ...(promptCut !== null && { promptCut }),
    timings: { stepMs, totalMs: performance.now() - started },
  };
}
