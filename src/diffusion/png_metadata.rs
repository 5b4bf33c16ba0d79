//! What a picture was made with, in words that other programs read too.

use std::fmt::Write;

use serde::Serialize;

/// Everything that makes a picture what it is, beside the model's files.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Settings {
    /// What is to be seen.
    pub prompt: String,
    /// What is not.
    pub negative_prompt: Option<String>,
    /// Steps of the scheduler.
    pub steps: usize,
    /// The guidance scale.
    pub guidance: f32,
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// The scheduler, as it was asked for or as its class is called.
    pub scheduler: String,
    /// The seed of the first noise; `None` where the latents were given.
    pub seed: Option<u64>,
    /// How much of a picture was painted over.
    pub strength: Option<f32>,
    /// The model's name.
    pub model: String,
    /// How its weights were kept.
    pub precision: String,
    /// LoRA files with their scales.
    pub lora: Vec<(String, f32)>,
}

impl Settings {
    /// The text that image viewers and web interfaces for Stable Diffusion know as "parameters".
    pub fn parameters(&self) -> String {
        let mut text = self.prompt.clone();
        for (name, scale) in &self.lora {
            let _ = write!(text, " <lora:{name}:{scale}>");
        }
        if let Some(negative) = &self.negative_prompt {
            let _ = write!(text, "\nNegative prompt: {negative}");
        }
        let _ = write!(text, "\nSteps: {}, Sampler: {}, CFG scale: {}", self.steps, self.scheduler, self.guidance);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_written_as_others_read_them() {
        let mut settings = Settings {
            prompt: "a cat".to_owned(),
            negative_prompt: Some("dogs".to_owned()),
            steps: 30,
            guidance: 5.5,
            width: 512,
            height: 768,
            scheduler: "euler".to_owned(),
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
