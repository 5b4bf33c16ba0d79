// One picture of a model that paints: its steps, its pixels, its file. Worker only.

import { toPng } from "./png.js";
import type { Watch } from "./models.js";
import type { PictureCall } from "./protocol.js";
import type { Painter } from "./wasm/mgm_web.js";
import type { Picture, PictureStep, Precision } from "./types.js";

/** The core's report of a picture. */
interface Report {
  settings: {
    prompt: string; negative_prompt: string | null; steps: number; guidance: number; width: number; height: number; scheduler: string;
    seed: number; strength: number | null; precision: Precision;
  };
  parameters: string;
  promptCut: string | null;
}

type Pixels = { width: number; height: number; data: Uint8ClampedArray<ArrayBuffer> };

const toImageData = ({ data, width, height }: Pixels) => new ImageData(data, width, height);

/** Paints a picture. */
export async function paint(
  painter: Painter,
  call: PictureCall & { prompt: string },
  image: ImageData | undefined,
  { signal, report }: Watch,
  onStep: (step: PictureStep) => void,
): Promise<Picture> {
  const started = performance.now();
  const progress = report("load");
  let [part, total, loaded] = ["", 0, 0];
  let step = { done: 0, total: 0 };
  /** The first step that is over, and when: it takes longer than the others. */
  let first: { done: number; at: number } | undefined;
  let stepMs = 0;
  /** Parts are loaded in part: the autoencoder without its encoder, where no picture comes in. */
  const loadingEnds = () => {
    if (loaded < total) progress(part, total, total);
    loaded = total;
  };
  const tell = (name: string, value: unknown): boolean => {
    switch (name) {
      case "loading":
        loadingEnds();
        [part, loaded, total] = [value as string, 0, 0];
        break;
      case "total":
        total = value as number;
        break;
      case "loaded":
        loaded += value as number;
        progress(part, Math.min(loaded, total), total);
        break;
      case "step": {
        loadingEnds();
        const [done = 0, all = 0] = value as number[];
        step = { done, total: all };
        const now = performance.now();
        if (first && done > first.done) stepMs = (now - first.at) / (done - first.done);
        if (done > 0) first ??= { done, at: now };
        // With previews the step is told with its own.
        if (!call.previews || done === 0) onStep(step);
        break;
      }
      case "decoding":
        loadingEnds();
        break;
      case "preview":
        onStep({ ...step, preview: toImageData(value as Pixels) });
        break;
    }
    return !signal.aborted;
  };
  const painted = (await painter.paint(JSON.stringify(call), image, tell)) as Pixels & { report: string };
  const { settings, parameters, promptCut } = JSON.parse(painted.report) as Report;
  const pixels = toImageData(painted);
  const { prompt, negative_prompt: negativePrompt, steps, guidance, width, height, scheduler, seed, strength, precision } = settings;
  return {
    pixels,
    // As the binary writes them: for other programs, and all of it as JSON.
    png: await toPng(pixels, { parameters, mgm: JSON.stringify(settings) }),
    settings: {
      prompt, steps, guidance, width, height, scheduler, seed, precision,
      ...(negativePrompt !== null && { negativePrompt }),
      ...(strength !== null && { strength }),
    },
    ...(promptCut !== null && { promptCut }),
    timings: { stepMs, totalMs: performance.now() - started },
  };
}
