//! The settings of a generated image, for PNG files and reports.

use std::fmt::Write;

use serde::Serialize;

use super::limits::{DEFAULT_GUIDANCE_SCALE, DEFAULT_NUM_INFERENCE_STEPS};
use crate::text::prompt_weights::PromptWeights;

/// The settings that, with the model's files, reproduce an image.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ImageSettings {
    /// What the image shows.
    pub prompt: String,
    /// What the image does not show.
    pub negative_prompt: Option<String>,
    /// Denoising steps.
    pub num_inference_steps: usize,
    /// Scale of classifier-free guidance.
    pub guidance_scale: f32,
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// The scheduler: the name that was given, or its class.
    pub scheduler: String,
    /// The seed of the noise; `None` if the initial latents were given.
    pub seed: Option<u64>,
    /// The strength of image-to-image; `None` without an initial image.
    pub strength: Option<f32>,
    /// The model's name.
    pub model: String,
    /// The precision of the model's matrices.
    pub precision: String,
    /// Names and scales of LoRA files.
    pub lora: Vec<(String, f32)>,
    /// What the UNet's output is: `epsilon`, `v_prediction` or `sample`.
    pub prediction_type: String,
    /// Whether the prompts have weights.
    pub prompt_weights: PromptWeights,
}

impl ImageSettings {
    /// A prompt with the default settings and seed 0. Scheduler, model and precision have no name yet, and the size
    /// is 0.
    pub fn new(prompt: impl Into<String>) -> Self {
        Self { prompt: prompt.into(), ..Self::default() }
    }

    /// Sets [`Self::width`] and [`Self::height`].
    pub fn with_size(self, (width, height): (usize, usize)) -> Self {
        Self { width, height, ..self }
    }

    /// Sets [`Self::negative_prompt`].
    pub fn with_negative_prompt(self, negative_prompt: impl Into<Option<String>>) -> Self {
        Self { negative_prompt: negative_prompt.into(), ..self }
    }

    /// Sets [`Self::num_inference_steps`].
    pub fn with_num_inference_steps(self, num_inference_steps: usize) -> Self {
        Self { num_inference_steps, ..self }
    }

    /// Sets [`Self::guidance_scale`].
    pub fn with_guidance_scale(self, guidance_scale: f32) -> Self {
        Self { guidance_scale, ..self }
    }

    /// Sets [`Self::scheduler`].
    pub fn with_scheduler(self, scheduler: impl Into<String>) -> Self {
        Self { scheduler: scheduler.into(), ..self }
    }

    /// Sets [`Self::seed`].
    pub fn with_seed(self, seed: impl Into<Option<u64>>) -> Self {
        Self { seed: seed.into(), ..self }
    }

    /// Sets [`Self::strength`].
    pub fn with_strength(self, strength: impl Into<Option<f32>>) -> Self {
        Self { strength: strength.into(), ..self }
    }

    /// Sets [`Self::model`].
    pub fn with_model(self, model: impl Into<String>) -> Self {
        Self { model: model.into(), ..self }
    }

    /// Sets [`Self::precision`].
    pub fn with_precision(self, precision: impl Into<String>) -> Self {
        Self { precision: precision.into(), ..self }
    }

    /// Sets [`Self::lora`].
    pub fn with_lora(self, lora: Vec<(String, f32)>) -> Self {
        Self { lora, ..self }
    }

    /// The settings as one text, in the format of the PNG chunk "parameters" of other image generators.
    pub fn parameters(&self) -> String {
        let mut text = self.prompt.clone();
        for (name, scale) in &self.lora {
            let _ = write!(text, " <lora:{name}:{scale}>");
        }
        if let Some(negative) = &self.negative_prompt {
            let _ = write!(text, "\nNegative prompt: {negative}");
        }
        let _ = write!(
            text,
            "\nSteps: {}, Sampler: {}, CFG scale: {}",
            self.num_inference_steps, self.scheduler, self.guidance_scale
        );
        if let Some(seed) = self.seed {
            let _ = write!(text, ", Seed: {seed}");
        }
        let _ = write!(text, ", Size: {}x{}, Model: {}", self.width, self.height, self.model);
        if let Some(strength) = self.strength {
            let _ = write!(text, ", Denoising strength: {strength}");
        }
        let _ = write!(text, ", Version: mgm {}", env!("CARGO_PKG_VERSION"));
        text
    }
}

impl Default for ImageSettings {
    fn default() -> Self {
        Self {
            prompt: String::new(),
            negative_prompt: None,
            prompt_weights: PromptWeights::default(),
            num_inference_steps: DEFAULT_NUM_INFERENCE_STEPS,
            guidance_scale: DEFAULT_GUIDANCE_SCALE,
            width: 0,
            height: 0,
            scheduler: String::new(),
            prediction_type: String::new(),
            seed: Some(0),
            strength: None,
            model: String::new(),
            precision: String::new(),
            lora: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_have_the_common_format() {
        let mut settings = ImageSettings {
            prompt: "a cat".to_owned(),
            negative_prompt: Some("dogs".to_owned()),
            prompt_weights: PromptWeights::Auto,
            num_inference_steps: 30,
            guidance_scale: 5.5,
            width: 512,
            height: 768,
            scheduler: "euler".to_owned(),
            prediction_type: "epsilon".to_owned(),
            seed: Some(7),
            strength: None,
            model: "sdxl".to_owned(),
            precision: "f16".to_owned(),
            lora: vec![("style".to_owned(), 0.8)],
        };
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(
            settings.parameters(),
            format!(
                "a cat <lora:style:0.8>\nNegative prompt: dogs\nSteps: 30, Sampler: euler, CFG scale: 5.5, Seed: 7, \
                 Size: 512x768, Model: sdxl, Version: mgm {version}"
            )
        );
        (settings.seed, settings.strength, settings.negative_prompt) = (None, Some(0.5), None);
        settings.lora.clear();
        assert_eq!(
            settings.parameters(),
            format!(
                "a cat\nSteps: 30, Sampler: euler, CFG scale: 5.5, Size: 512x768, Model: sdxl, Denoising strength: 0.5, \
                 Version: mgm {version}"
            )
        );
    }
}
