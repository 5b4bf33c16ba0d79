//! Text to image and image to image: text encoders, denoising steps of the UNet under a scheduler, the autoencoder.
//!
//! The latents stay on the device from the first noise to the image; the host reads them back for previews only. A step
//! is one submission, and the next one is recorded while it runs.

mod generate;
mod images;
mod prompts;
mod request;
mod residency;

use self::prompts::{Prompts, condition};
use self::request::emit;
use self::residency::{Networks, Part};
use crate::diffusion::preview::preview;
use crate::diffusion::scheduler::{Schedule, Step};
use crate::diffusion::torch_rng::TorchRng;
use crate::gpu::{Gpu, Readback};
use crate::image::Image;
use crate::memory_plan::MemoryPlan;
use crate::ops::{self, FeatureMap};
use crate::tensor::{Precision, Tensor};
use crate::tuning::check_rounding_kernels;
use crate::weights::sdxl::SdxlCheckpoint;
use crate::{Error, Result};

pub use generate::{GenerateImage, GeneratedImage};
pub use prompts::PromptEmbeds;
pub use request::{DiffusionEvent, DiffusionRequest, InitialLatents, OnDiffusionEvent};
pub use residency::DiffusionOptions;

/// Stable Diffusion XL on a device. Networks are loaded when they are needed; under a memory limit, others are dropped
/// first.
pub struct DiffusionPipeline {
    networks: Networks,
    prompts: Prompts,
}

impl DiffusionPipeline {
    /// Opens a model from disk: a folder in diffusers' layout or a bundle. Nothing is loaded yet.
    ///
    /// # Errors
    /// As [`SdxlCheckpoint::open`], [`SdxlCheckpoint::open_bundle`] and [`Self::open`].
    #[cfg(all(feature = "fs", any(unix, windows)))]
    pub async fn from_path(gpu: &Gpu, path: impl AsRef<std::path::Path>) -> Result<Self> {
        use crate::weights::bundle::read::Bundle;
        use crate::weights::sdxl::OpenOptions;

        let folder: std::rc::Rc<dyn crate::io::Folder> = std::rc::Rc::new(crate::io::DiskFolder::new(path.as_ref()));
        let checkpoint = match Bundle::find(&folder).await? {
            Some(bundle) => SdxlCheckpoint::open_bundle(&bundle).await?,
            None => SdxlCheckpoint::open(folder, &OpenOptions::default()).await?,
        };
        Self::open(gpu, checkpoint, DiffusionOptions::default()).await
    }

    /// A pipeline over an opened model. Loads the tokenizers now and each network when it is needed.
    ///
    /// # Errors
    /// As [`SdxlCheckpoint::check`] and [`ClipTokenizer::load`](crate::text::clip::ClipTokenizer::load);
    /// [`Error::OutOfMemory`] if the largest network alone exceeds the memory limit.
    pub async fn open(gpu: &Gpu, checkpoint: SdxlCheckpoint, options: DiffusionOptions) -> Result<Self> {
        let networks = Networks::new(gpu, checkpoint, options)?;
        check_rounding_kernels(gpu).await?;
        Ok(Self { prompts: Prompts::new(&networks.checkpoint).await?, networks })
    }

    /// The opened files.
    pub fn checkpoint(&self) -> &SdxlCheckpoint {
        &self.networks.checkpoint
    }

    /// The precision of the matrices of the UNet and the text encoders.
    pub fn precision(&self) -> Precision {
        self.networks.precision
    }

    /// The memory of each network.
    #[doc(hidden)]
    pub fn plan(&self) -> &MemoryPlan {
        &self.networks.plan
    }

    /// Device memory that an image needs besides the loaded networks, in bytes: the largest missing network, and
    /// activations.
    pub fn missing_bytes(&self) -> u64 {
        self.networks.missing_bytes()
    }

    /// Drops all networks. They are loaded again when they are needed.
    pub fn release(&mut self) {
        self.networks.release();
    }

    /// Pixels per latent. Widths and heights are multiples of it.
    pub fn pixels_per_latent(&self) -> usize {
        self.networks.vae_config().pixels_per_latent()
    }

    /// Generates the image of a complete request. [`Self::generate`] has defaults for all settings.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an invalid size, guidance scale or initial latents; [`Error::Cancelled`] if
    /// `on_event` breaks, between steps or while a network is loaded; [`Error::OutOfMemory`].
    pub async fn run(&mut self, request: &DiffusionRequest, on_event: OnDiffusionEvent<'_>) -> Result<Image> {
        let schedule = request.check(self.networks.vae_config())?;
        let conditions = self.encode_prompts(request, on_event).await?;
        let latents = match self.denoise(request, &schedule, &conditions, on_event).await {
            Err(Error::OutOfMemory { .. }) if self.networks.drop_all_but(Part::Unet) => {
                self.denoise(request, &schedule, &conditions, on_event).await?
            }
            denoised => denoised?,
        };
        self.networks.decode(&latents, on_event).await
    }

    /// The embeddings of the prompts: with guidance, those of the negative prompt come first.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn encode_prompts(
        &mut self,
        request: &DiffusionRequest,
        on_event: OnDiffusionEvent<'_>,
    ) -> Result<Vec<PromptEmbeds>> {
        self.prompts.encode_all(&mut self.networks, request, on_event).await
    }

    /// Runs all steps. Returns the latents, [pixels, channels].
    async fn denoise(
        &mut self,
        request: &DiffusionRequest,
        schedule: &Schedule,
        encoded: &[PromptEmbeds],
        on_event: OnDiffusionEvent<'_>,
    ) -> Result<FeatureMap> {
        let mut rng = TorchRng::new(request.seed);
        let empty = || Error::Internal("a schedule without steps".to_owned());
        let first = schedule.steps.first().ok_or_else(empty)?;
        let start = self.first_sample(request, schedule, first, &mut rng, on_event).await?;
        let vae = self.networks.vae_config();
        let ((height, width), channels) = (request.latent_size(vae), vae.latent_channels);

        let gpu = self.networks.gpu.clone();
        let unet = self.networks.unet(on_event).await?;
        let mut recorder = gpu.record();
        let condition = condition(&mut recorder, unet, encoded, request)?;
        let batch = encoded.len();
        let pixels = height * width;
        let sample = Tensor::new(&gpu, &[pixels, channels], &start, "latents")?;
        let denoised = Tensor::zeros(&gpu, &[pixels, channels], "denoised latents")?;
        let scaled: Vec<f32> = start.iter().map(|value| value * first.input_scale).collect();
        let input = Tensor::new(&gpu, &[batch * pixels, channels], &scaled.repeat(batch), "model input")?;

        let steps = schedule.steps.len();
        emit(on_event, DiffusionEvent::Step { done: 0, total: steps })?;
        let mut pending: Option<Readback> = None;
        for (index, step) in schedule.steps.iter().enumerate() {
            let map = FeatureMap { height, width, values: input.clone() };
            let output = unet.forward(&mut recorder, &map, step.timestep, &condition)?;
            let noise = if step.draws_noise {
                let drawn = channels_last(&rng.randn(pixels * channels, request.noise), channels);
                Some(Tensor::upload(&mut recorder, &[pixels, channels], &drawn, "noise")?)
            } else {
                None
            };
            let next_scale = schedule.steps.get(index + 1).map_or(1.0, |next| next.input_scale);
            let coefficients = coefficients(step, request, next_scale);
            ops::denoise(&mut recorder, &coefficients, &output.values, noise.as_ref(), [&sample, &denoised, &input])?;
            let rows = if request.previews { denoised.clone() } else { denoised.slice_rows(0..1) };
            let readback = rows.read_back(&mut recorder);
            std::mem::replace(&mut recorder, gpu.record()).submit()?;
            // The previous step ran while this one was recorded.
            if let Some(readback) = pending.replace(readback) {
                report(readback, (index, steps), request, (width, height), on_event).await?;
            }
        }
        if let Some(readback) = pending {
            report(readback, (steps, steps), request, (width, height), on_event).await?;
        }
        Ok(FeatureMap { height, width, values: sample })
    }

    /// The first step's input before scaling, [pixels, channels].
    async fn first_sample(
        &mut self,
        request: &DiffusionRequest,
        schedule: &Schedule,
        first: &Step,
        rng: &mut TorchRng,
        on_event: OnDiffusionEvent<'_>,
    ) -> Result<Vec<f32>> {
        let vae = self.networks.vae_config();
        let (channels, (height, width)) = (vae.latent_channels, request.latent_size(vae));
        let count = channels * height * width;
        let encoded_image = match &request.initial_latents {
            InitialLatents::Image { image, .. } => {
                // diffusers draws the autoencoder's noise first.
                let drawn = channels_last(&rng.randn(count, request.noise), channels);
                Some(self.networks.encode_image(image, &drawn, on_event).await?)
            }
            InitialLatents::Noise | InitialLatents::Latents { .. } => None,
        };
        let noise = match &request.initial_latents {
            InitialLatents::Latents { values, .. } => channels_last(values, channels),
            _ => channels_last(&rng.randn(count, request.noise), channels),
        };
        Ok(match encoded_image {
            None => noise.into_iter().map(|noise| noise * schedule.initial_scale).collect(),
            Some(image) => {
                let [image_scale, noise_scale] = first.start;
                image.iter().zip(noise).map(|(image, noise)| image_scale * image + noise_scale * noise).collect()
            }
        })
    }
}

fn coefficients(step: &Step, request: &DiffusionRequest, input_scale: f32) -> ops::Denoise {
    let next = step.next;
    ops::Denoise {
        guidance_scale: request.is_guided().then_some(request.guidance_scale),
        denoised: [step.denoised.sample, step.denoised.output],
        limit: step.denoised.clamp,
        next: [next.sample, next.output, next.denoised, next.previous, next.noise],
        input_scale,
    }
}

/// Waits for a step and sends its events.
async fn report(
    readback: Readback,
    (done, total): (usize, usize),
    request: &DiffusionRequest,
    (width, height): (usize, usize),
    on_event: OnDiffusionEvent<'_>,
) -> Result<()> {
    let values = readback.values::<f32>().await?;
    emit(on_event, DiffusionEvent::Step { done, total })?;
    if request.previews {
        emit(on_event, DiffusionEvent::Preview { image: &preview(&values, width, height)? })?;
    }
    Ok(())
}

/// Transposes [channels, pixels] to [pixels, channels].
fn channels_last(values: &[f32], channels: usize) -> Vec<f32> {
    let pixels = values.len() / channels.max(1);
    (0..pixels).flat_map(|pixel| (0..channels).map(move |channel| values[channel * pixels + pixel])).collect()
}
