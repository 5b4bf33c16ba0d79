//! Requests to a pipeline, and its events.

use std::ops::ControlFlow;

use crate::diffusion::NoiseType;
use crate::diffusion::limits::{
    DEFAULT_GUIDANCE_SCALE, DEFAULT_NUM_INFERENCE_STEPS, MAX_SIDE, check_guidance_scale, check_size,
};
use crate::diffusion::png_metadata::ImageSettings;
use crate::diffusion::scheduler::Schedule;
use crate::image::{Canvas, Image, Window, bicubic};
use crate::weights::sdxl::config::{SchedulerConfig, VaeConfig};
use crate::{Error, Result};

/// What to generate.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DiffusionRequest {
    /// What the image shows.
    pub prompt: String,
    /// What the image does not show. `None` and an empty text have different embeddings in some models.
    pub negative_prompt: Option<String>,
    /// The scheduler and its settings.
    pub scheduler: SchedulerConfig,
    /// Denoising steps.
    pub num_inference_steps: usize,
    /// Weight of the prompt against the negative prompt in classifier-free guidance. At 1 and below the negative prompt
    /// is ignored.
    pub guidance_scale: f32,
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// What denoising starts from.
    pub initial_latents: InitialLatents,
    /// Seed of all noise.
    pub seed: u64,
    /// The element type in which noise is drawn.
    pub noise: NoiseType,
    /// Send [`DiffusionEvent::Preview`] after each step.
    pub previews: bool,
}

impl DiffusionRequest {
    /// A request for one image with this scheduler and size: 50 steps, guidance scale 5, seed 0.
    pub fn new(prompt: impl Into<String>, scheduler: SchedulerConfig, (width, height): (usize, usize)) -> Self {
        Self {
            prompt: prompt.into(),
            negative_prompt: None,
            scheduler,
            num_inference_steps: DEFAULT_NUM_INFERENCE_STEPS,
            guidance_scale: DEFAULT_GUIDANCE_SCALE,
            width,
            height,
            initial_latents: InitialLatents::Noise,
            seed: 0,
            noise: NoiseType::F16,
            previews: false,
        }
    }

    /// The request that `settings` describe. The scheduler, the initial latents and the noise type are separate
    /// arguments: settings do not contain them in full. A missing seed is 0.
    pub fn from_settings(
        settings: &ImageSettings,
        scheduler: SchedulerConfig,
        initial_latents: InitialLatents,
        noise: NoiseType,
    ) -> Self {
        Self {
            negative_prompt: settings.negative_prompt.clone(),
            num_inference_steps: settings.num_inference_steps,
            guidance_scale: settings.guidance_scale,
            initial_latents,
            seed: settings.seed.unwrap_or(0),
            noise,
            ..Self::new(settings.prompt.clone(), scheduler, (settings.width, settings.height))
        }
    }

    /// Sets [`Self::previews`].
    pub fn with_previews(self, previews: bool) -> Self {
        Self { previews, ..self }
    }

    /// Whether guidance runs: as in diffusers, only at scales above 1.
    pub(super) fn is_guided(&self) -> bool {
        self.guidance_scale > 1.0
    }

    /// Checks the settings. Returns the schedule.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an invalid size, guidance scale or initial latents.
    pub(super) fn check(&self, vae: &VaeConfig) -> Result<Schedule> {
        let Self { width, height, num_inference_steps: steps, guidance_scale, .. } = *self;
        check_size((width, height), vae.pixels_per_latent())?;
        check_guidance_scale(guidance_scale)?;
        let (latent_height, latent_width) = self.latent_size(vae);
        let expected = vae.latent_channels * latent_height * latent_width;
        match &self.initial_latents {
            InitialLatents::Noise => Schedule::new(&self.scheduler, steps),
            InitialLatents::Latents { values, width: found_width, height: found_height }
                if values.len() != expected || (*found_height, *found_width) != (latent_height, latent_width) =>
            {
                Err(Error::InvalidArgument(format!(
                    "{} latents, {found_width} x {found_height}, for an image of {width} x {height} pixels, expected {expected}, {latent_width} x {latent_height}",
                    values.len()
                )))
            }
            InitialLatents::Latents { .. } => Schedule::new(&self.scheduler, steps),
            InitialLatents::Image { image, strength } => {
                if (image.width(), image.height()) != (width, height) {
                    let (found_width, found_height) = (image.width(), image.height());
                    return Err(Error::InvalidArgument(format!(
                        "the initial image has {found_width} x {found_height} pixels, expected {width} x {height}"
                    )));
                }
                Schedule::for_image(&self.scheduler, steps, *strength)
            }
        }
    }

    /// Height and width of the latents.
    pub(super) fn latent_size(&self, vae: &VaeConfig) -> (usize, usize) {
        let unit = vae.pixels_per_latent();
        (self.height / unit, self.width / unit)
    }
}

/// What denoising starts from.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum InitialLatents {
    /// Noise drawn with the seed.
    Noise,
    /// Noise of unit variance, [channels, height, width]: see [`Self::latents`].
    #[non_exhaustive]
    Latents {
        /// The values.
        values: Vec<f32>,
        /// Width in latents.
        width: usize,
        /// Height in latents.
        height: usize,
    },
    /// An image of the requested size, for image-to-image.
    Image {
        /// The image.
        image: Image,
        /// How much of the schedule runs: above 0 (almost nothing changes) and at most 1 (the image is ignored).
        strength: f32,
    },
}

impl InitialLatents {
    /// Noise of unit variance, [channels, height, width].
    pub fn latents(values: Vec<f32>, (width, height): (usize, usize)) -> Self {
        Self::Latents { values, width, height }
    }

    /// An image of any size, resized to the requested one.
    pub fn image(image: Image, (width, height): (usize, usize), strength: f32) -> Self {
        // The pipeline rejects invalid sizes before it reads the image.
        let fits = (image.width(), image.height()) == (width, height);
        if fits || [width, height].iter().any(|side| *side == 0 || *side > MAX_SIDE) {
            return Self::Image { image, strength };
        }
        let window = Window { left: 0, top: 0, width, height };
        Self::Image { image: bicubic(&Canvas::new(&image), width, height, window), strength }
    }

    /// The strength of image-to-image; `None` without an initial image.
    pub fn strength(&self) -> Option<f32> {
        match self {
            Self::Image { strength, .. } => Some(*strength),
            Self::Noise | Self::Latents { .. } => None,
        }
    }
}

/// An event during the generation of an image.
#[derive(Debug)]
#[non_exhaustive]
pub enum DiffusionEvent<'a> {
    /// The end of a prompt was cut off because it exceeds the text encoders' window. Not sent for
    /// [`NEGATIVE_PROMPT`](crate::diffusion::gen_protocol::NEGATIVE_PROMPT).
    PromptCut {
        /// The text that was cut off.
        dropped: &'a str,
    },
    /// A network is being loaded.
    Loading {
        /// Its name, as in the memory plan.
        part: &'static str,
    },
    /// Denoising progress.
    Step {
        /// Steps done.
        done: usize,
        /// All steps.
        total: usize,
    },
    /// A rough image of the denoised latents, at an eighth of the width and height.
    Preview {
        /// The image.
        image: &'a Image,
    },
    /// The autoencoder decodes the latents.
    Decoding,
}

/// Receives events. [`ControlFlow::Break`] cancels.
pub type OnDiffusionEvent<'a> = &'a mut dyn FnMut(DiffusionEvent<'_>) -> ControlFlow<()>;

/// Sends an event.
///
/// # Errors
/// [`Error::Cancelled`] if the receiver breaks.
pub(super) fn emit(on_event: OnDiffusionEvent<'_>, event: DiffusionEvent<'_>) -> Result<()> {
    match on_event(event) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Cancelled),
    }
}
