//! The builder of a request, and generated images.

use std::future::IntoFuture;
use std::ops::ControlFlow;

use super::DiffusionPipeline;
use super::request::{DiffusionEvent, DiffusionRequest, InitialLatents};
use crate::diffusion::NoiseType;
use crate::diffusion::limits::{
    DEFAULT_GUIDANCE_SCALE, DEFAULT_INPAINTING_STRENGTH, DEFAULT_NUM_INFERENCE_STEPS, DEFAULT_STRENGTH,
};
use crate::diffusion::png_metadata::ImageSettings;
use crate::image::Image;
use crate::io::LocalFuture;
use crate::text::prompt_weights::PromptWeights;
use crate::weights::sdxl::config::{PredictionType, SchedulerOverride};
use crate::{Error, Result};

type EventCallback<'a> = Box<dyn FnMut(DiffusionEvent<'_>) -> ControlFlow<()> + 'a>;

/// A builder of a request for one image. Await it to generate the [`GeneratedImage`].
#[must_use = "an image is generated when this is awaited"]
pub struct GenerateImage<'a> {
    pipeline: &'a mut DiffusionPipeline,
    settings: ImageSettings,
    size: Option<(usize, usize)>,
    scheduler: Option<SchedulerOverride>,
    prediction_type: Option<PredictionType>,
    initial: Initial,
    mask: Option<Image>,
    noise: Option<NoiseType>,
    previews: bool,
    on_event: Option<EventCallback<'a>>,
}

/// What denoising starts from, before the size is known.
enum Initial {
    Image(Image),
    Latents(InitialLatents),
}

impl DiffusionPipeline {
    /// Prepares an image of a prompt. Awaiting the [`GenerateImage`] generates it.
    pub fn generate(&mut self, prompt: impl Into<String>) -> GenerateImage<'_> {
        let settings = ImageSettings::new(prompt.into())
            .with_model(self.checkpoint().name.clone())
            .with_precision(self.precision().to_string())
            .with_lora(self.checkpoint().merged_lora.clone());
        GenerateImage {
            pipeline: self,
            settings,
            size: None,
            scheduler: None,
            prediction_type: None,
            initial: Initial::Latents(InitialLatents::Noise),
            mask: None,
            noise: None,
            previews: false,
            on_event: None,
        }
    }
}

impl<'a> GenerateImage<'a> {
    /// What the image does not show.
    pub fn negative_prompt(mut self, negative_prompt: impl Into<String>) -> Self {
        self.settings.negative_prompt = Some(negative_prompt.into());
        self
    }

    /// Whether prompts have weights, and are encoded in chunks if they are long. Default: [`PromptWeights::Auto`].
    pub fn prompt_weights(mut self, prompt_weights: impl Into<Option<PromptWeights>>) -> Self {
        self.settings.prompt_weights = prompt_weights.into().unwrap_or_default();
        self
    }

    /// Denoising steps. Default: 50.
    pub fn num_inference_steps(mut self, steps: impl Into<Option<usize>>) -> Self {
        self.settings.num_inference_steps = steps.into().unwrap_or(DEFAULT_NUM_INFERENCE_STEPS);
        self
    }

    /// Scale of classifier-free guidance. Default: 5. At 1 and below the negative prompt is ignored and a step takes
    /// half the time.
    pub fn guidance_scale(mut self, scale: impl Into<Option<f32>>) -> Self {
        self.settings.guidance_scale = scale.into().unwrap_or(DEFAULT_GUIDANCE_SCALE);
        self
    }

    /// Width and height in pixels, multiples of 8. Default: the model's, or those of the initial image.
    pub fn size(mut self, width: usize, height: usize) -> Self {
        self.size = Some((width, height));
        self
    }

    /// Seed of all noise. Default: 0.
    pub fn seed(mut self, seed: u64) -> Self {
        self.settings.seed = Some(seed);
        self
    }

    /// Changes the model's scheduler, such as `"dpm++-2m-karras".parse()?`. Default: the model's.
    pub fn scheduler(mut self, scheduler: impl Into<Option<SchedulerOverride>>) -> Self {
        self.scheduler = scheduler.into();
        self
    }

    /// What the UNet's output is. Default: as the model's scheduler or a single file declares.
    pub fn prediction_type(mut self, prediction_type: impl Into<Option<PredictionType>>) -> Self {
        self.prediction_type = prediction_type.into();
        self
    }

    /// Starts from an image of any size instead of noise.
    pub fn image(mut self, image: Image) -> Self {
        self.initial = Initial::Image(image);
        self
    }

    /// Generates only the white parts of a mask, of any size, over [`Self::image`] (inpainting).
    pub fn mask(mut self, mask: Image) -> Self {
        self.mask = Some(mask);
        self
    }

    /// Sets what denoising starts from. An image must have the requested size; [`Self::image`] resizes one.
    pub fn initial_latents(mut self, latents: InitialLatents) -> Self {
        self.initial = Initial::Latents(latents);
        self
    }

    /// How much of the schedule runs over the initial image, above 0 and at most 1. Default: 0.6, with a
    /// mask 0.9999 as in diffusers. Applies to [`Self::image`]; [`InitialLatents::Image`] has its own.
    pub fn strength(mut self, strength: impl Into<Option<f32>>) -> Self {
        self.settings.strength = strength.into();
        self
    }

    /// The element type in which noise is drawn. Default: as in diffusers, f32 for a model at f32, otherwise f16.
    pub fn noise(mut self, noise: impl Into<Option<NoiseType>>) -> Self {
        self.noise = noise.into();
        self
    }

    /// The model's name in the settings of the image. Default: the name of its folder or file.
    pub fn model_name(mut self, name: impl Into<String>) -> Self {
        self.settings.model = name.into();
        self
    }

    /// Whether to send [`DiffusionEvent::Preview`] after each step. Default: no.
    pub fn previews(mut self, previews: bool) -> Self {
        self.previews = previews;
        self
    }

    /// Receives events. [`ControlFlow::Break`] cancels.
    pub fn on_event(mut self, on_event: impl FnMut(DiffusionEvent<'_>) -> ControlFlow<()> + 'a) -> Self {
        self.on_event = Some(Box::new(on_event));
        self
    }

    async fn run(self) -> Result<GeneratedImage> {
        let Self { pipeline, mut settings, size, scheduler, prediction_type, initial, mask, .. } = self;
        let Self { noise, previews, on_event, .. } = self;
        let unit = pipeline.pixels_per_latent();
        let whole = |side: usize| (side / unit).max(1) * unit;
        let initial_size = match &initial {
            Initial::Image(image) => Some(pipeline.checkpoint().size_for(image)),
            Initial::Latents(InitialLatents::Image { image, .. } | InitialLatents::Inpaint { image, .. }) => {
                Some((whole(image.width()), whole(image.height())))
            }
            Initial::Latents(InitialLatents::Latents { width, height, .. }) => Some((width * unit, height * unit)),
            Initial::Latents(_) => None,
        };
        let size = size.or(initial_size).unwrap_or_else(|| pipeline.checkpoint().default_size());
        (settings.width, settings.height) = size;
        let choice = scheduler;
        let mut scheduler = pipeline.checkpoint().scheduler(choice.as_ref())?;
        scheduler.prediction_type = prediction_type.unwrap_or(scheduler.prediction_type);
        settings.prediction_type = scheduler.prediction_type.to_string();
        settings.scheduler = choice.map_or_else(|| scheduler.class.to_string(), |choice| choice.to_string());
        let initial_latents = match (initial, mask) {
            (Initial::Image(image), None) => {
                InitialLatents::image(image, size, settings.strength.unwrap_or(DEFAULT_STRENGTH))
            }
            (Initial::Image(image), Some(mask)) => {
                InitialLatents::inpaint(image, mask, size, settings.strength.unwrap_or(DEFAULT_INPAINTING_STRENGTH))
            }
            (Initial::Latents(latents), None) => latents,
            (Initial::Latents(_), Some(_)) => {
                return Err(Error::InvalidArgument("a mask needs an initial image".to_owned()));
            }
        };
        settings.strength = initial_latents.strength();
        let noise = noise.unwrap_or_else(|| NoiseType::for_precision(pipeline.precision()));
        let request = DiffusionRequest::from_settings(&settings, scheduler, initial_latents, noise);
        if matches!(request.initial_latents, InitialLatents::Latents { .. }) {
            // The request keeps the seed, because the scheduler may draw more noise.
            settings.seed = None;
        }
        let mut on_event = on_event.unwrap_or_else(|| Box::new(|_| ControlFlow::Continue(())));
        let image = pipeline.run(&request.with_previews(previews), &mut *on_event).await?;
        Ok(GeneratedImage { image, settings })
    }
}

impl<'a> IntoFuture for GenerateImage<'a> {
    type Output = Result<GeneratedImage>;
    type IntoFuture = LocalFuture<'a, Result<GeneratedImage>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

/// A generated image with the settings that reproduce it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct GeneratedImage {
    /// The pixels.
    pub image: Image,
    /// The settings that it was generated with.
    pub settings: ImageSettings,
}

impl GeneratedImage {
    /// An image, and the settings that it was generated with.
    pub fn new(image: Image, settings: ImageSettings) -> Self {
        Self { image, settings }
    }

    /// The bytes of a PNG file. Its text chunk `parameters` has the settings in the format of other image generators,
    /// `mgm` has them as JSON.
    ///
    /// # Errors
    /// [`Error::Image`](crate::Error::Image) if the encoder rejects the text.
    #[cfg(feature = "decode")]
    pub fn to_png(&self) -> Result<Vec<u8>> {
        let json = serde_json::to_string(&self.settings).map_err(|error| crate::Error::Internal(error.to_string()))?;
        crate::image::encode_png(&self.image, &[("parameters", &self.settings.parameters()), ("mgm", &json)])
    }

    /// Writes [`Self::to_png`] to a file.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) if the file cannot be written.
    #[cfg(all(feature = "fs", feature = "decode"))]
    pub fn save(&self, path: impl AsRef<std::path::Path>) -> Result<()> {
        let bytes = self.to_png()?;
        std::fs::write(&path, bytes).map_err(|error| crate::Error::io(path.as_ref().display().to_string(), &error))
    }
}
