//! Requests to a pipeline, and its events.

use std::ops::ControlFlow;

use crate::diffusion::NoiseType;
use crate::diffusion::limits::{
    DEFAULT_GUIDANCE_SCALE, DEFAULT_NUM_INFERENCE_STEPS, MAX_SIDE, check_guidance_scale, check_size,
};
use crate::diffusion::png_metadata::ImageSettings;
use crate::diffusion::scheduler::Schedule;
use crate::image::{Canvas, Image, Window, bicubic};
use crate::text::prompt_weights::PromptWeights;
use crate::weights::sdxl::config::{SchedulerConfig, UnetConfig, VaeConfig};
use crate::{Error, Result};

/// What to generate.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DiffusionRequest {
    /// What the image shows.
    pub prompt: String,
    /// What the image does not show. `None` and an empty text have different embeddings in some models.
    pub negative_prompt: Option<String>,
    /// Whether prompts have weights, and are encoded in chunks if they are long.
    pub prompt_weights: PromptWeights,
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
            prompt_weights: PromptWeights::default(),
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
            prompt_weights: settings.prompt_weights,
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
    pub(super) fn check(&self, vae: &VaeConfig, unet: &UnetConfig) -> Result<Schedule> {
        if unet.in_channels != vae.latent_channels && !matches!(self.initial_latents, InitialLatents::Inpaint { .. }) {
            return Err(Error::InvalidArgument(
                "this is an inpainting model: it needs an initial image and a mask".to_owned(),
            ));
        }
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
            InitialLatents::Image { image, strength } | InitialLatents::Inpaint { image, strength, .. } => {
                let mut sizes = vec![("initial image", image.width(), image.height())];
                if let InitialLatents::Inpaint { mask, .. } = &self.initial_latents {
                    sizes.push(("mask", mask.width, mask.height));
                }
                if let Some((what, found_width, found_height)) = sizes
                    .into_iter()
                    .find(|(_, found_width, found_height)| (*found_width, *found_height) != (width, height))
                {
                    return Err(Error::InvalidArgument(format!(
                        "the {what} has {found_width} x {found_height} pixels, expected {width} x {height}"
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
    /// An image of the requested size, of which the masked pixels are regenerated: see [`Self::inpaint`].
    #[non_exhaustive]
    Inpaint {
        /// The image.
        image: Image,
        /// Which pixels are generated.
        mask: Mask,
        /// How much of the schedule runs.
        strength: f32,
    },
}

/// The pixels of an image to regenerate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    pub(super) width: usize,
    pub(super) height: usize,
    /// Row by row.
    pub(super) pixels: Vec<bool>,
}

impl Mask {
    /// Selects pixels with a grey value of at least 0.5, where white is 1.
    pub fn of_image(image: &Image) -> Self {
        // Pillow's conversion to grey, ITU-R 601-2.
        let grey = |pixel: &[u8; 3]| {
            let [red, green, blue] = pixel.map(u32::from);
            (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
        };
        let pixels = image.data().as_chunks().0.iter().map(|pixel| grey(pixel) >= 128).collect();
        Self { width: image.width(), height: image.height(), pixels }
    }

    /// The mask in latents of `unit` pixels a side, as diffusers does it: the value of the first of their pixels.
    pub(super) fn latents(&self, unit: usize) -> Vec<f32> {
        let rows = self.pixels.chunks_exact(self.width.max(1)).step_by(unit.max(1));
        rows.flat_map(|row| row.iter().step_by(unit.max(1)).map(|fresh| f32::from(u8::from(*fresh)))).collect()
    }
}

impl InitialLatents {
    /// Noise of unit variance, [channels, height, width].
    pub fn latents(values: Vec<f32>, (width, height): (usize, usize)) -> Self {
        Self::Latents { values, width, height }
    }

    /// An image of any size, scaled to cover the requested one and centre-cropped.
    pub fn image(image: Image, size: (usize, usize), strength: f32) -> Self {
        Self::Image { image: cover(image, size), strength }
    }

    /// An image to regenerate where `mask` is white. Both may have any size; each is scaled to cover the requested one
    /// and centre-cropped.
    pub fn inpaint(image: Image, mask: Image, size: (usize, usize), strength: f32) -> Self {
        Self::Inpaint { image: cover(image, size), mask: Mask::of_image(&cover(mask, size)), strength }
    }

    /// The strength of image-to-image; `None` without an initial image.
    pub fn strength(&self) -> Option<f32> {
        match self {
            Self::Image { strength, .. } | Self::Inpaint { strength, .. } => Some(*strength),
            Self::Noise | Self::Latents { .. } => None,
        }
    }
}

/// The image scaled to cover a size, and its middle.
fn cover(image: Image, (width, height): (usize, usize)) -> Image {
    // The pipeline rejects invalid sizes before it reads the image.
    let fits = (image.width(), image.height()) == (width, height);
    if fits || [width, height].iter().any(|side| *side == 0 || *side > MAX_SIDE) {
        return image;
    }
    // Each side of the image at the scale at which the other one fits.
    let scaled = |side: usize, other: usize, target: usize| {
        let side = (side as u64 * target as u64 + other as u64 / 2) / other as u64;
        usize::try_from(side).unwrap_or(usize::MAX)
    };
    let whole_width = scaled(image.width(), image.height(), height).max(width);
    let whole_height = scaled(image.height(), image.width(), width).max(height);
    let (left, top) = ((whole_width - width) / 2, (whole_height - height) / 2);
    let window = Window { left, top, width, height };
    bicubic(&Canvas::new(&image), whole_width, whole_height, window)
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
