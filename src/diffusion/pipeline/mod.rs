//! Text to image and image to image: text encoders, denoising steps of the UNet under a scheduler, the autoencoder.
//!
//! The latents stay on the device from the first noise to the image; the host reads them back for previews only. A step
//! is one submission, and the next one is recorded while it runs.

use std::rc::Rc;

mod generate;
mod images;
mod prompts;
mod request;
mod residency;

use self::prompts::{Prompts, condition};
use self::request::emit;
use self::residency::{Networks, Part};
use crate::diffusion::networks::Unet;
use crate::diffusion::preview::preview;
use crate::diffusion::scheduler::{Schedule, Step};
use crate::diffusion::torch_rng::TorchRng;
use crate::gpu::{Gpu, Readback};
use crate::image::Image;
use crate::loader::padded_channels;
use crate::memory_plan::MemoryPlan;
use crate::ops::{self, FeatureMap};
use crate::tensor::{Precision, Tensor};
use crate::text::clip::ClipTokenizer;
use crate::tuning::check_rounding_kernels;
use crate::weights::sdxl::SdxlCheckpoint;
use crate::{Error, Result};

pub use generate::{GenerateImage, GeneratedImage};
pub use prompts::PromptEmbeds;
pub use request::{DiffusionEvent, DiffusionRequest, InitialLatents, Mask, OnDiffusionEvent};
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
    /// As [`SdxlCheckpoint::check`] and [`ClipTokenizer::load`];
    /// [`Error::OutOfMemory`] if the largest network alone exceeds the memory limit.
    pub async fn open(gpu: &Gpu, checkpoint: SdxlCheckpoint, options: DiffusionOptions) -> Result<Self> {
        let tokenizers = match &options.tokenizers {
            Some(tokenizers) => Rc::clone(tokenizers),
            None => Self::tokenizers(&checkpoint).await?,
        };
        let networks = Networks::new(gpu, checkpoint, options)?;
        check_rounding_kernels(gpu).await?;
        Ok(Self { prompts: Prompts::new(tokenizers), networks })
    }

    /// Reads a model's tokenizers. It needs no device: a host can report what is wrong with them before it opens one,
    /// and pass them on in [`DiffusionOptions::tokenizers`].
    ///
    /// # Errors
    /// As [`ClipTokenizer::load`].
    pub async fn tokenizers(checkpoint: &SdxlCheckpoint) -> Result<Rc<[ClipTokenizer; 2]>> {
        let [first, second] = &checkpoint.tokenizers;
        Ok(Rc::new([
            ClipTokenizer::load(&*first.folder, first.pad_token).await?,
            ClipTokenizer::load(&*second.folder, second.pad_token).await?,
        ]))
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
        let schedule = request.check(self.networks.vae_config(), &self.networks.checkpoint.unet.1)?;
        self.check_maps(request)?;
        let conditions = self.encode_prompts(request, on_event).await?;
        let latents = match self.denoise(request, &schedule, &conditions, on_event).await {
            Err(Error::OutOfMemory { .. }) if self.networks.drop_all_but(Part::Unet) => {
                self.denoise(request, &schedule, &conditions, on_event).await?
            }
            denoised => denoised?,
        };
        self.networks.decode(&latents, on_event).await
    }

    /// Checks that the UNet's feature maps fit the device's bindings.
    fn check_maps(&self, request: &DiffusionRequest) -> Result<()> {
        let (height, width) = request.latent_size(self.networks.vae_config());
        let images = if request.is_guided() { 2 } else { 1 };
        let needed = Unet::largest_map(&self.networks.checkpoint.unet.1, images, height, width);
        let limit = self.networks.gpu.capabilities().max_binding_bytes;
        if needed <= limit {
            return Ok(());
        }
        let unit = self.pixels_per_latent() as f64;
        let scale = (limit as f64 / needed as f64).sqrt();
        let fitting =
            [request.width, request.height].map(|side| ((side as f64 * scale / unit) as usize).max(1) as f64 * unit);
        Err(Error::InvalidArgument(format!(
            "an image of {} x {} pixels needs feature maps of {} MiB, and this device has bindings of at most {} MiB: choose \
             at most about {} x {} pixels{}",
            request.width,
            request.height,
            needed >> 20,
            limit >> 20,
            fitting[0],
            fitting[1],
            if images == 2 && needed / 2 <= limit { ", or a guidance scale of 1" } else { "" }
        )))
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
        let Start { sample: start, inpainting } =
            self.first_sample(request, schedule, first, &mut rng, on_event).await?;
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
        let inpainting = inpainting.map(|inpainting| inpainting.upload(&gpu, batch, (height, width))).transpose()?;

        let steps = schedule.steps.len();
        emit(on_event, DiffusionEvent::Step { done: 0, total: steps })?;
        let mut pending: Option<Readback> = None;
        for (index, step) in schedule.steps.iter().enumerate() {
            let mut map = FeatureMap { height, width, values: input.clone() };
            if let Some(Inpainting::Model { condition }) = &inpainting {
                map = ops::concatenate(&mut recorder, &map, condition)?;
            }
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
            if let Some(Inpainting::Blend { known, noise, mask }) = &inpainting {
                let kept = schedule.steps.get(index + 1).map_or([1.0, 0.0], |next| next.start);
                let numbers = ops::Inpaint { kept, input_scale: next_scale };
                ops::inpaint(&mut recorder, &numbers, [known, noise, mask], [&sample, &input])?;
            }
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

    /// The first step's input before scaling, and the tensors for inpainting.
    async fn first_sample(
        &mut self,
        request: &DiffusionRequest,
        schedule: &Schedule,
        first: &Step,
        rng: &mut TorchRng,
        on_event: OnDiffusionEvent<'_>,
    ) -> Result<Start> {
        let vae = self.networks.vae_config();
        let (channels, unit, (height, width)) =
            (vae.latent_channels, vae.pixels_per_latent(), request.latent_size(vae));
        let is_model = self.networks.checkpoint.unet.1.in_channels != channels;
        let count = channels * height * width;
        let mut draw = || channels_last(&rng.randn(count, request.noise), channels);
        // diffusers draws the noise of the autoencoder first.
        let (encoded_image, from_noise) = match &request.initial_latents {
            InitialLatents::Image { image, .. } => {
                (Some(self.networks.encode_image(image, None, &draw(), on_event).await?), false)
            }
            // At full strength the image only conditions inpainting models.
            InitialLatents::Inpaint { strength, .. } if *strength >= 1.0 && is_model => (None, true),
            InitialLatents::Inpaint { image, strength, .. } => {
                (Some(self.networks.encode_image(image, None, &draw(), on_event).await?), *strength >= 1.0)
            }
            InitialLatents::Noise | InitialLatents::Latents { .. } => (None, true),
        };
        let noise = match &request.initial_latents {
            InitialLatents::Latents { values, .. } => channels_last(values, channels),
            _ => draw(),
        };
        let sample = match &encoded_image {
            Some(image) if !from_noise => {
                let [image_scale, noise_scale] = first.start;
                image.iter().zip(&noise).map(|(image, noise)| image_scale * image + noise_scale * noise).collect()
            }
            _ => noise.iter().map(|noise| noise * schedule.initial_scale).collect(),
        };
        let mut inpainting = None;
        if let InitialLatents::Inpaint { image, mask, .. } = &request.initial_latents {
            // diffusers always encodes the image without the masked part, and so always draws this noise.
            let drawn = draw();
            let fresh = mask.latents(unit);
            inpainting = Some(match encoded_image {
                Some(known) if !is_model => Masked::Image { known, noise, fresh },
                _ => {
                    let visible = self.networks.encode_image(image, Some(mask), &drawn, on_event).await?;
                    Masked::Condition { visible, fresh }
                }
            });
        }
        Ok(Start { sample, inpainting })
    }
}

/// What denoising starts from.
struct Start {
    /// [pixels, channels].
    sample: Vec<f32>,
    inpainting: Option<Masked>,
}

/// Inpainting's tensors on the host: latents [pixels, channels], and 1 for each pixel that is generated.
enum Masked {
    /// A model for any image: after each step, the known image replaces what is not generated.
    Image { known: Vec<f32>, noise: Vec<f32>, fresh: Vec<f32> },
    /// An inpainting model: the latents of the image without the masked part are inputs.
    Condition { visible: Vec<f32>, fresh: Vec<f32> },
}

/// The same on the device.
enum Inpainting {
    Blend {
        known: Tensor,
        noise: Tensor,
        mask: Tensor,
    },
    /// Inputs after the latents: mask, visible latents, and zeros up to a multiple of 4.
    Model {
        condition: FeatureMap,
    },
}

impl Masked {
    fn upload(self, gpu: &Gpu, batch: usize, (height, width): (usize, usize)) -> Result<Inpainting> {
        let pixels = height * width;
        let rows = |values: &[f32], what| Tensor::new(gpu, &[pixels, values.len() / pixels], values, what);
        Ok(match self {
            Self::Image { known, noise, fresh } => Inpainting::Blend {
                known: rows(&known, "known latents")?,
                noise: rows(&noise, "noise")?,
                mask: rows(&fresh, "mask")?,
            },
            Self::Condition { visible, fresh } => {
                let channels = visible.len() / pixels;
                let columns = padded_channels(channels + 1);
                let mut values = Vec::with_capacity(pixels * columns);
                for (fresh, visible) in fresh.iter().zip(visible.chunks_exact(channels)) {
                    values.push(*fresh);
                    values.extend(visible);
                    values.resize(values.len() + columns - channels - 1, 0.0);
                }
                let values = Tensor::new(gpu, &[batch * pixels, columns], &values.repeat(batch), "inpainting inputs")?;
                Inpainting::Model { condition: FeatureMap { height, width, values } }
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
