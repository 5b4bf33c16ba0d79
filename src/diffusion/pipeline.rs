//! Text to image and image to image: text encoders, denoising steps of the UNet under a scheduler, the autoencoder.
//!
//! The latents stay on the device from the first noise to the image; the host reads them back for previews only. A step
//! is one submission, and the next one is recorded while it runs. Networks are loaded when they are needed; under a
//! memory limit, others are dropped first.

use std::collections::HashMap;

use super::gen_protocol::NEGATIVE_PROMPT;
use super::preview::{byte, preview};
use super::request::emit;
use super::scheduler::{Schedule, Step};
use super::torch_rng::TorchRng;
use super::{Condition, TextEncoder, Unet, VaeDecoder, VaeEncoder};
use crate::gpu::{Gpu, Readback, Recorder};
use crate::image::Image;
use crate::loader::vision_precision;
use crate::loader::{Loader, OnProgress};
use crate::memory_plan::MemoryPlan;
use crate::ops::{self, FeatureMap};
use crate::tensor::{Precision, Tensor};
use crate::text::clip::ClipTokenizer;
use crate::weights::sdxl::{SdxlCheckpoint, TEXT_1, TEXT_2, UNET, VAE};
use crate::weights::view::Weights;
use crate::{Error, Result};

pub use super::generate::{GenerateImage, GeneratedImage};
pub use super::request::{DiffusionEvent, DiffusionRequest, InitialLatents, MAX_SIDE, OnDiffusionEvent};

/// The number of prompts whose embeddings are cached.
const MAX_CACHED_PROMPTS: usize = 64;
/// Device memory that stays free for activations.
const WORKING_BYTES: u64 = 1 << 30;
/// The limit of the autoencoder's feature maps when decoding is retried after running out of memory, in bytes.
const TIGHT_MAP: u64 = 32 << 20;

/// How a pipeline loads its networks.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct DiffusionOptions {
    /// Precision of the matrices of the UNet and the text encoders. `None`: as stored in the files.
    pub precision: Option<Precision>,
    /// Called with the bytes loaded since the last call. `ControlFlow::Break` cancels.
    pub on_progress: Option<OnProgress>,
}

impl DiffusionOptions {
    /// Sets [`Self::precision`].
    pub fn with_precision(self, precision: impl Into<Option<Precision>>) -> Self {
        Self { precision: precision.into(), ..self }
    }

    /// Sets [`Self::on_progress`].
    pub fn with_progress(self, on_progress: OnProgress) -> Self {
        Self { on_progress: Some(on_progress), ..self }
    }
}

/// The embeddings of a prompt that condition the UNet.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptEmbeds {
    /// Hidden states of both encoders, concatenated: [positions, width].
    pub states: Vec<f32>,
    /// The pooled embedding.
    pub pooled: Vec<f32>,
}

/// Stable Diffusion XL on a device. Networks are loaded when they are needed.
pub struct DiffusionPipeline {
    gpu: Gpu,
    checkpoint: SdxlCheckpoint,
    tokenizers: [ClipTokenizer; 2],
    precision: Precision,
    on_progress: Option<OnProgress>,
    plan: MemoryPlan,
    text: Option<[TextEncoder; 2]>,
    unet: Option<Unet>,
    decoder: Option<VaeDecoder>,
    /// The embeddings of earlier prompts.
    encoded: HashMap<String, PromptEmbeds>,
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
    /// As [`SdxlCheckpoint::check`] and [`ClipTokenizer::load`]; [`Error::OutOfMemory`] if the largest network alone
    /// exceeds the memory limit.
    pub async fn open(gpu: &Gpu, checkpoint: SdxlCheckpoint, options: DiffusionOptions) -> Result<Self> {
        checkpoint.check()?;
        let precision = options.precision.unwrap_or_else(|| checkpoint.stored_precision());
        let plan = MemoryPlan::of_diffusion(&checkpoint, precision);
        if let (Some(limit), Some((part, needed))) =
            (gpu.memory().limit, plan.parts.iter().max_by_key(|(_, bytes)| *bytes))
            && *needed > limit
        {
            let what = format!("the {part} at {precision}");
            return Err(Error::OutOfMemory { what, needed: *needed, available: limit });
        }
        let [first, second] = &checkpoint.tokenizers;
        let tokenizers = [
            ClipTokenizer::load(&*first.folder, first.pad_token).await?,
            ClipTokenizer::load(&*second.folder, second.pad_token).await?,
        ];
        Ok(Self {
            gpu: gpu.clone(),
            checkpoint,
            tokenizers,
            precision,
            on_progress: options.on_progress,
            plan,
            text: None,
            unet: None,
            decoder: None,
            encoded: HashMap::new(),
        })
    }

    /// The opened files.
    pub fn checkpoint(&self) -> &SdxlCheckpoint {
        &self.checkpoint
    }

    /// The precision of the matrices of the UNet and the text encoders.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The memory of each network.
    #[doc(hidden)]
    pub fn plan(&self) -> &MemoryPlan {
        &self.plan
    }

    /// Device memory that an image needs besides the loaded networks, in bytes: the largest missing network, and
    /// activations.
    pub fn missing_bytes(&self) -> u64 {
        let parts =
            [(Part::Text, self.text.is_some()), (Part::Unet, self.unet.is_some()), (Part::Vae, self.decoder.is_some())];
        let missing = parts.iter().filter(|(_, there)| !there).map(|(part, _)| part.bytes(&self.plan)).max();
        missing.unwrap_or(0) + WORKING_BYTES.min(self.gpu.memory().limit.unwrap_or(u64::MAX) / 4)
    }

    /// Drops all networks. They are loaded again when they are needed.
    pub fn release(&mut self) {
        (self.text, self.unet, self.decoder) = (None, None, None);
        self.gpu.trim();
    }

    /// Prepares an image of a prompt. Awaiting the [`GenerateImage`] generates it.
    pub fn generate(&mut self, prompt: impl Into<String>) -> GenerateImage<'_> {
        GenerateImage::new(self, prompt.into())
    }

    /// Generates the image of a complete request. [`Self::generate`] has defaults for all settings.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an invalid size, guidance scale or initial latents; [`Error::Cancelled`] if
    /// `on_event` breaks, between steps or while a network is loaded; [`Error::OutOfMemory`].
    pub async fn run(&mut self, request: &DiffusionRequest, on_event: OnDiffusionEvent<'_>) -> Result<Image> {
        let schedule = self.check(request)?;
        let conditions = self.encode_prompts(request, on_event).await?;
        let latents = match self.denoise(request, &schedule, &conditions, on_event).await {
            Err(Error::OutOfMemory { .. }) if self.drop_all_but(Part::Unet) => {
                self.denoise(request, &schedule, &conditions, on_event).await?
            }
            denoised => denoised?,
        };
        match self.decode(&latents, None, on_event).await {
            Err(Error::OutOfMemory { .. }) => {
                self.drop_all_but(Part::Vae);
                self.decode(&latents, Some(TIGHT_MAP), on_event).await
            }
            decoded => decoded,
        }
    }

    /// Pixels per latent. Widths and heights are multiples of it.
    pub fn pixels_per_latent(&self) -> usize {
        self.checkpoint.vae.1.pixels_per_latent()
    }

    fn check(&self, request: &DiffusionRequest) -> Result<Schedule> {
        let DiffusionRequest { width, height, num_inference_steps: steps, guidance_scale, .. } = *request;
        let unit = self.pixels_per_latent();
        if [width, height].iter().any(|side| *side == 0 || !side.is_multiple_of(unit) || *side > MAX_SIDE) {
            return Err(Error::InvalidArgument(format!(
                "an image of {width} x {height} pixels, expected sides that are multiples of {unit}, up to {MAX_SIDE}"
            )));
        }
        if !(0.0..=1000.0).contains(&guidance_scale) {
            return Err(Error::InvalidArgument(format!("a guidance scale of {guidance_scale}, expected 0 to 1000")));
        }
        let expected = self.latent_len(request);
        match &request.initial_latents {
            InitialLatents::Noise => Schedule::new(&request.scheduler, steps),
            InitialLatents::Latents { values, width: found_width, height: found_height }
                if values.len() != expected || (*found_height, *found_width) != self.latent_size(request) =>
            {
                Err(Error::InvalidArgument(format!(
                    "{} latents, {found_width} x {found_height}, for an image of {width} x {height} pixels, expected {expected}, {} x {}",
                    values.len(),
                    width / unit,
                    height / unit
                )))
            }
            InitialLatents::Latents { .. } => Schedule::new(&request.scheduler, steps),
            InitialLatents::Image { image, strength } => {
                if (image.width(), image.height()) != (width, height) {
                    let (found_width, found_height) = (image.width(), image.height());
                    return Err(Error::InvalidArgument(format!(
                        "the initial image has {found_width} x {found_height} pixels, expected {width} x {height}"
                    )));
                }
                Schedule::for_image(&request.scheduler, steps, *strength)
            }
        }
    }

    fn latent_size(&self, request: &DiffusionRequest) -> (usize, usize) {
        let unit = self.pixels_per_latent();
        (request.height / unit, request.width / unit)
    }

    fn latent_len(&self, request: &DiffusionRequest) -> usize {
        let (height, width) = self.latent_size(request);
        self.checkpoint.vae.1.latent_channels * height * width
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
        let mut encoded = Vec::new();
        if request.is_guided() {
            encoded.push(match &request.negative_prompt {
                None if self.checkpoint.force_zeros_for_empty_prompt => {
                    let unet = &self.checkpoint.unet.1;
                    let positions = self.checkpoint.text[0].1.max_positions;
                    PromptEmbeds {
                        states: vec![0.0; positions * unet.cross_attention_dim],
                        pooled: vec![0.0; unet.pooled_width()],
                    }
                }
                negative => self.encode(negative.as_deref().unwrap_or_default(), on_event).await?,
            });
        }
        encoded.push(self.encode(&request.prompt, on_event).await?);
        Ok(encoded)
    }

    async fn encode(&mut self, text: &str, on_event: OnDiffusionEvent<'_>) -> Result<PromptEmbeds> {
        if let Some(encoded) = self.encoded.get(text) {
            return Ok(encoded.clone());
        }
        let mut windows = Vec::new();
        for ((_, config), tokenizer) in self.checkpoint.text.iter().zip(&self.tokenizers) {
            windows.push(tokenizer.window(text, config.max_positions)?);
        }
        // Don't report truncation of the built-in negative prompt: the user did not write it.
        if text != NEGATIVE_PROMPT
            && let Some(dropped) = windows.iter().find_map(|window| window.dropped.as_deref())
        {
            emit(on_event, DiffusionEvent::PromptCut { dropped })?;
        }
        self.load_text(on_event).await?;
        let Some(encoders) = &self.text else { return Err(not_loaded()) };
        let mut recorder = self.gpu.record();
        let mut pending = Vec::new();
        for (encoder, window) in encoders.iter().zip(&windows) {
            let encoding = encoder.forward(&mut recorder, &window.ids)?;
            let pooled = encoding.pooled.map(|pooled| pooled.read_back(&mut recorder));
            pending.push((encoding.hidden.columns(), encoding.hidden.read_back(&mut recorder), pooled));
        }
        recorder.submit()?;
        let mut states = Vec::new();
        let mut pooled = Vec::new();
        for (columns, hidden, last) in pending {
            states.push((columns, hidden.values::<f32>().await?));
            // The pooled embedding is that of the last encoder with a projection.
            if let Some(last) = last {
                pooled = last.values().await?;
            }
        }
        let encoded = PromptEmbeds { states: concat_columns(&states), pooled };
        if self.encoded.len() >= MAX_CACHED_PROMPTS {
            self.encoded.clear();
        }
        self.encoded.insert(text.to_owned(), encoded.clone());
        Ok(encoded)
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
        let first = schedule.steps.first().ok_or_else(not_loaded)?;
        let start = self.first_sample(request, schedule, first, &mut rng, on_event).await?;
        let (height, width) = self.latent_size(request);
        let channels = self.checkpoint.vae.1.latent_channels;

        self.load_unet(on_event).await?;
        let Some(unet) = &self.unet else { return Err(not_loaded()) };
        let gpu = self.gpu.clone();
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
        let channels = self.checkpoint.vae.1.latent_channels;
        let count = self.latent_len(request);
        let encoded_image = match &request.initial_latents {
            InitialLatents::Image { image, .. } => {
                // diffusers draws the autoencoder's noise first.
                let drawn = channels_last(&rng.randn(count, request.noise), channels);
                Some(self.encode_image(image, &drawn, on_event).await?)
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

    /// Drops other networks until `part` fits into the memory limit.
    fn make_room(&mut self, part: Part) {
        let Some(limit) = self.gpu.memory().limit else { return };
        let needed = part.bytes(&self.plan) + WORKING_BYTES.min(limit / 4);
        // The text encoders first: their embeddings are cached.
        for other in [Part::Text, Part::Vae, Part::Unet] {
            if other == part || self.gpu.memory().allocated.saturating_add(needed) <= limit {
                continue;
            }
            match other {
                Part::Text => self.text = None,
                Part::Vae => self.decoder = None,
                Part::Unet => self.unet = None,
            }
            self.gpu.trim();
        }
    }

    /// Drops all networks but `part`. Returns whether any was loaded.
    fn drop_all_but(&mut self, part: Part) -> bool {
        let mut dropped = false;
        if part != Part::Text {
            dropped |= self.text.take().is_some();
        }
        if part != Part::Unet {
            dropped |= self.unet.take().is_some();
        }
        if part != Part::Vae {
            dropped |= self.decoder.take().is_some();
        }
        self.gpu.trim();
        dropped
    }

    fn loader(&self, weights: &Weights, precision: Precision) -> Loader {
        Loader::new(&self.gpu, weights.clone(), precision, self.on_progress.clone())
    }

    async fn load_text(&mut self, on_event: OnDiffusionEvent<'_>) -> Result<()> {
        if self.text.is_some() {
            return Ok(());
        }
        self.make_room(Part::Text);
        let mut encoders = Vec::new();
        for (name, (weights, config)) in [TEXT_1, TEXT_2].into_iter().zip(&self.checkpoint.text) {
            emit(on_event, DiffusionEvent::Loading { part: name })?;
            encoders.push(TextEncoder::load(&self.loader(weights, self.precision), config).await?);
        }
        self.gpu.flush_writes().await?;
        self.text = encoders.try_into().ok();
        Ok(())
    }

    async fn load_unet(&mut self, on_event: OnDiffusionEvent<'_>) -> Result<()> {
        if self.unet.is_some() {
            return Ok(());
        }
        self.make_room(Part::Unet);
        emit(on_event, DiffusionEvent::Loading { part: UNET })?;
        let (weights, config) = &self.checkpoint.unet;
        let unet = Unet::load(&self.loader(weights, self.precision), config).await?;
        self.gpu.flush_writes().await?;
        self.unet = Some(unet);
        Ok(())
    }

    /// Encodes an image to latents, sampled with the noise `drawn`: [pixels, channels].
    async fn encode_image(&mut self, image: &Image, drawn: &[f32], on_event: OnDiffusionEvent<'_>) -> Result<Vec<f32>> {
        self.make_room(Part::Vae);
        emit(on_event, DiffusionEvent::Loading { part: VAE })?;
        // Used once, so it is dropped afterwards.
        let (weights, config) = &self.checkpoint.vae;
        let loader = self.loader(weights, vision_precision(self.precision));
        let encoder = VaeEncoder::load(&loader, config).await?;
        let mut recorder = self.gpu.record();
        let (height, width) = (image.height(), image.width());
        let pixels: Vec<f32> = image
            .data()
            .chunks_exact(3)
            .flat_map(|pixel| {
                [pixel[0], pixel[1], pixel[2]].map(|value| f32::from(value) / 127.5 - 1.0).into_iter().chain([0.0])
            })
            .collect();
        let pixels = Tensor::upload(&mut recorder, &[height * width, 4], &pixels, "image")?;
        let moments = encoder.encode(&mut recorder, &FeatureMap { height, width, values: pixels })?;
        let readback = moments.values.read_back(&mut recorder);
        recorder.submit()?;
        let moments = readback.values::<f32>().await?;
        let channels = config.latent_channels;
        let latent = |(pixel, drawn): (&[f32], &[f32])| -> Vec<f32> {
            let (means, logs) = pixel.split_at(channels);
            (0..channels)
                .map(|channel| {
                    let deviation = (0.5 * logs[channel].clamp(-30.0, 20.0)).exp();
                    let sample = means[channel] + deviation * drawn[channel];
                    let mean = config.shift_factor + config.latents_mean.as_ref().map_or(0.0, |means| means[channel]);
                    let std = config.latents_std.as_ref().map_or(1.0, |stds| stds[channel]);
                    (sample - mean) * config.scaling_factor / std
                })
                .collect()
        };
        Ok(moments.chunks_exact(2 * channels).zip(drawn.chunks_exact(channels)).flat_map(latent).collect())
    }

    /// Decodes latents to an image, with feature maps of at most `largest` bytes if that is given.
    async fn decode(
        &mut self,
        latents: &FeatureMap,
        largest: Option<u64>,
        on_event: OnDiffusionEvent<'_>,
    ) -> Result<Image> {
        if self.decoder.is_none() {
            self.make_room(Part::Vae);
            emit(on_event, DiffusionEvent::Loading { part: VAE })?;
            let (weights, config) = &self.checkpoint.vae;
            let loader = self.loader(weights, vision_precision(self.precision));
            let decoder = VaeDecoder::load(&loader, config).await?;
            self.gpu.flush_writes().await?;
            self.decoder = Some(decoder);
        }
        emit(on_event, DiffusionEvent::Decoding)?;
        let Some(decoder) = &self.decoder else { return Err(not_loaded()) };
        let mut recorder = self.gpu.record();
        let image = match largest {
            Some(largest) => decoder.decode_within(&mut recorder, latents, largest)?,
            None => decoder.decode(&mut recorder, latents)?,
        };
        let readback = image.values.read_back(&mut recorder);
        recorder.submit()?;
        let values = readback.values::<f32>().await?;
        if let Some((index, value)) = values.iter().enumerate().find(|(_, value)| !value.is_finite()) {
            return Err(Error::BadValue { name: "image".to_owned(), value: *value, index: index as u64 });
        }
        let channels = image.channels().max(1);
        let bytes = values.chunks_exact(channels).flat_map(|pixel| pixel.iter().take(3)).map(|value| byte(*value));
        Image::new(image.width, image.height, bytes.collect())
    }
}

/// The networks that are loaded and dropped as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Text,
    Unet,
    Vae,
}

impl Part {
    fn bytes(self, plan: &MemoryPlan) -> u64 {
        let names: &[&str] = match self {
            Self::Text => &[TEXT_1, TEXT_2],
            Self::Unet => &[UNET],
            Self::Vae => &[VAE],
        };
        plan.parts.iter().filter(|(name, _)| names.contains(name)).map(|(_, bytes)| bytes).sum()
    }
}

fn not_loaded() -> Error {
    Error::Internal("the schedule is empty or a network is not loaded".to_owned())
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

fn condition(
    recorder: &mut Recorder,
    unet: &Unet,
    encoded: &[PromptEmbeds],
    request: &DiffusionRequest,
) -> Result<Condition> {
    let batch = encoded.len();
    let states: Vec<f32> = encoded.iter().flat_map(|encoded| encoded.states.iter().copied()).collect();
    let pooled: Vec<f32> = encoded.iter().flat_map(|encoded| encoded.pooled.iter().copied()).collect();
    let width = unet.config().cross_attention_dim;
    let states = Tensor::upload(recorder, &[states.len() / width, width], &states, "text states")?;
    let pooled = Tensor::upload(recorder, &[batch, pooled.len() / batch], &pooled, "pooled text")?;
    let (height, width) = (request.height as f32, request.width as f32);
    // Original size, crop offset, target size.
    let ids = [height, width, 0.0, 0.0, height, width];
    unet.condition(recorder, &states, &pooled, &vec![ids; batch])
}

/// Concatenates the columns of matrices with the same number of rows. Each matrix: (columns, values).
fn concat_columns(parts: &[(usize, Vec<f32>)]) -> Vec<f32> {
    let rows = parts.iter().map(|(columns, values)| values.len() / columns.max(&1)).min().unwrap_or(0);
    let row = |row: usize| {
        parts.iter().flat_map(move |(columns, values)| values[row * columns..(row + 1) * columns].iter().copied())
    };
    (0..rows).flat_map(row).collect()
}

/// Transposes [channels, pixels] to [pixels, channels].
fn channels_last(values: &[f32], channels: usize) -> Vec<f32> {
    let pixels = values.len() / channels.max(1);
    (0..pixels).flat_map(|pixel| (0..channels).map(move |channel| values[channel * pixels + pixel])).collect()
}
