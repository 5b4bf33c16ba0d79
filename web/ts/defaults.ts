// The core's defaults and limits. tests/readers/defaults.rs compares them with those of the Rust crate.

/** Default values of the options of {@link Mgm.chat} and {@link Mgm.generate}. */
export const defaults = {
  temperature: 0.2,
  topK: 50,
  maxNewTokens: 512,
  numInferenceSteps: 50,
  guidanceScale: 5,
  strength: 0.6,
} as const;

/** The largest values of options of {@link Mgm.generate}. */
export const limits = {
  numInferenceSteps: 1000,
  guidanceScale: 1000,
  /** Width and height, in pixels. */
  side: 8192,
} as const;
