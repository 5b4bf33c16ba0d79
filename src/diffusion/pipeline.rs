//! From a prompt to a picture: text encoders, steps of the UNet under a scheduler, the autoencoder.
//!
//! The latents stay on the device from the first noise to the picture; the host sees them for previews only. A step is one
//! submission, and the next one is recorded while it runs. Parts are loaded when they are needed; under a memory limit those that
//! are not needed now make room.

use std::collections::HashMap;

use super::gen_protocol::NEGATIVE_PROMPT;
use super::preview::{byte, preview};
use super::scheduler::{Schedule, Step};
use super::torch_rng::{Generator, NoiseType};
use super::{Condition, TextEncoder, Unet, VaeDecoder, VaeEncoder};
use crate::gpu::{Gpu, Readback, Recorder};
use crate::image::{Canvas, Rgb8, Window, bicubic};
use crate::load::vision_precision;
use crate::load::{Loader, OnProgress};
use crate::ops::{self, FeatureMap};
use crate::plan::Plan;
use crate::tensor::{Precision, Tensor};
use crate::text::clip::ClipTokenizer;
use crate::weights::sdxl::config::SchedulerConfig;
use crate::weights::sdxl::{SdxlCheckpoint, TEXT_1, TEXT_2, UNET, VAE};
use crate::weights::view::Weights;
use crate::{Error, Result};

/// How a model is loaded.
#[derive(Clone)]
pub struct LoadOptions {
    /// How the matrices of the UNet and the text encoders are kept.
    pub precision: Precision,
    /// Called with bytes loaded since the last call; `false` stops.
    pub on_progress: Option<OnProgress>,
}

/// What to paint.
#[derive(Debug, Clone)]
pub struct Request {
    /// What is to be seen.
    pub prompt: String,
    /// What is not. `None` is no text at all, which is not the same to the model as an empty one.
    pub negative: Option<String>,
    /// The scheduler.
    pub scheduler: SchedulerConfig,
    /// Its steps.
    pub steps: usize,
    /// How far to go from the negative prompt to the prompt and beyond it. At 1 the negative prompt counts for nothing and is left
    /// out.
    pub guidance: f32,
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// What to begin with.
    pub start: Start,
    /// Seed of all noise.
    pub seed: u64,
    /// The type in which noise is drawn.
    pub noise: NoiseType,
    /// Show what can be seen after each step.
    pub previews: bool,
}

/// What a picture begins with.
#[derive(Debug, Clone)]
pub enum Start {
    /// Noise of the seed.
    Noise,
    /// This noise, of unit variance: [4, height, width].
    Latents {
        /// The values.
        values: Vec<f32>,
        /// Latents in a row.
        width: usize,
        /// Rows of them.
        height: usize,
    },
    /// A picture of the size asked for, of which `strength` (above 0, at most 1) is painted over.
    Image(Rgb8, f32),
}

impl Start {
    /// A picture of any size, which becomes one of the size asked for.
    pub fn image(image: Rgb8, (width, height): (usize, usize), strength: f32) -> Self {
        // Sizes that make no sense are refused later, before this is used.
        let fits = (image.width(), image.height()) == (width, height);
        if fits || [width, height].iter().any(|side| *side == 0 || *side > MAX_SIDE) {
            return Self::Image(image, strength);
        }
        let window = Window { left: 0, top: 0, width, height };
        Self::Image(bicubic(&Canvas::new(&image), width, height, window), strength)
    }
}

/// What happens while a picture is made.
#[derive(Debug)]
pub enum Event<'a> {
    /// The end of a prompt finds no room in a text encoder's window. (Not told of [`NEGATIVE_PROMPT`].)
    PromptCut(&'a str),
    /// A part of the model is being loaded.
    Loading(&'static str),
    /// Steps that are done, of all.
    Step(usize, usize),
    /// What can be seen after a step, an eighth as large as the picture.
    Preview(&'a Rgb8),
    /// The latents become a picture.
    Decoding,
}

/// Called with each event; `false` stops.
pub type OnEvent<'a> = &'a mut dyn FnMut(Event<'_>) -> bool;

/// A prompt as the UNet takes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    /// States of both encoders side by side, [positions, width].
    pub states: Vec<f32>,
    /// The whole in one vector.
    pub pooled: Vec<f32>,
}

/// A model that paints.
pub struct Diffusion {
    gpu: Gpu,
    checkpoint: SdxlCheckpoint,
    tokenizers: [ClipTokenizer; 2],
    options: LoadOptions,
    plan: Plan,
    text: Option<[TextEncoder; 2]>,
    unet: Option<Unet>,
    decoder: Option<VaeDecoder>,
    /// Prompts that were encoded before.
    encoded: HashMap<String, Encoded>,
}

/// Prompts that are remembered.
const MAX_ENCODED: usize = 64;

/// Sides of pictures beyond this make no sense (and their latents' counts fit into 32 bits up to there).
pub const MAX_SIDE: usize = 8192;

impl Diffusion {
    /// Opens a model: its tokenizers now, its networks when they are needed.
    ///
    /// # Errors
    /// As [`SdxlCheckpoint::check`] and [`ClipTokenizer::load`]; [`Error::OutOfMemory`] if not even one part after the other fits into what may be used.
    pub async fn open(gpu: &Gpu, checkpoint: SdxlCheckpoint, options: LoadOptions) -> Result<Self> {
        checkpoint.check()?;
        let plan = Plan::of_diffusion(&checkpoint, options.precision);
        if let (Some(limit), Some((part, needed))) =
            (gpu.memory().limit, plan.parts.iter().max_by_key(|(_, bytes)| *bytes))
            && *needed > limit
        {
            let what = format!("the {part} at {}", options.precision);
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
            options,
            plan,
            text: None,
            unet: None,
            decoder: None,
            encoded: HashMap::new(),
        })
    }

    /// The model's files.
    pub fn checkpoint(&self) -> &SdxlCheckpoint {
        &self.checkpoint
    }

    /// What it needs.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What a picture needs beside what is loaded: the largest part that is not there, and room to work.
    pub fn missing_bytes(&self) -> u64 {
        let parts =
            [(Part::Text, self.text.is_some()), (Part::Unet, self.unet.is_some()), (Part::Vae, self.decoder.is_some())];
        let missing = parts.iter().filter(|(_, there)| !there).map(|(part, _)| part.bytes(&self.plan)).max();
        missing.unwrap_or(0) + WORKING_BYTES.min(self.gpu.memory().limit.unwrap_or(u64::MAX) / 4)
    }

    /// Gives the memory of all parts back. They are loaded again when they are needed.
    pub fn release(&mut self) {
        (self.text, self.unet, self.decoder) = (None, None, None);
        self.gpu.trim();
    }

    /// Paints a picture. `on_event` gives `false` to stop, which it can between steps and while a part is loaded.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a request that makes no sense, [`Error::Cancelled`], [`Error::OutOfMemory`].
    pub async fn generate(&mut self, request: &Request, on_event: OnEvent<'_>) -> Result<Rgb8> {
        let schedule = self.check(request)?;
        let conditions = self.encode_prompts(request, on_event).await?;
        let latents = match self.paint(request, &schedule, &conditions, on_event).await {
            Err(Error::OutOfMemory { .. }) if self.drop_all_but(Part::Unet) => {
                self.paint(request, &schedule, &conditions, on_event).await?
            }
            painted => painted?,
        };
        match self.decode(&latents, None, on_event).await {
            Err(Error::OutOfMemory { .. }) => {
                self.drop_all_but(Part::Vae);
                self.decode(&latents, Some(TIGHT_MAP), on_event).await
            }
            decoded => decoded,
        }
    }

    /// The side of a latent in pixels, of which a picture's sides are multiples.
    pub fn pixels_per_latent(&self) -> usize {
        self.checkpoint.vae.1.pixels_per_latent()
    }

    fn check(&self, request: &Request) -> Result<Schedule> {
        let Request { width, height, steps, guidance, .. } = *request;
        let unit = self.pixels_per_latent();
        if [width, height].iter().any(|side| *side == 0 || !side.is_multiple_of(unit) || *side > MAX_SIDE) {
            return Err(Error::InvalidArgument(format!(
                "a picture of {width} x {height} pixels, expected sides that are multiples of {unit}, up to {MAX_SIDE}"
            )));
        }
        if !(0.0..=1000.0).contains(&guidance) {
            return Err(Error::InvalidArgument(format!("guidance {guidance} is not from 0 to 1000")));
        }
        let wanted = self.latent_len(request);
        match &request.start {
            Start::Noise => Schedule::new(&request.scheduler, steps),
            Start::Latents { values, width: found_width, height: found_height }
                if values.len() != wanted || (*found_height, *found_width) != self.latent_size(request) =>
            {
                Err(Error::InvalidArgument(format!(
                    "{} latents, {found_width} x {found_height}, for a picture of {width} x {height} pixels, expected {wanted}, {} x {}",
                    values.len(),
                    width / unit,
                    height / unit
                )))
            }
            Start::Latents { .. } => Schedule::new(&request.scheduler, steps),
            Start::Image(image, strength) => {
                if (image.width(), image.height()) != (width, height) {
                    let (found_width, found_height) = (image.width(), image.height());
                    return Err(Error::InvalidArgument(format!(
                        "the picture to begin with has {found_width} x {found_height} pixels, expected {width} x {height}"
                    )));
                }
                Schedule::for_image(&request.scheduler, steps, *strength)
            }
        }
    }

    fn latent_size(&self, request: &Request) -> (usize, usize) {
        let unit = self.pixels_per_latent();
        (request.height / unit, request.width / unit)
    }

    fn latent_len(&self, request: &Request) -> usize {
        let (height, width) = self.latent_size(request);
        self.checkpoint.vae.1.latent_channels * height * width
    }

    /// Both prompts (the negative one first, where there is guidance) as the UNet takes them.
    ///
    /// # Errors
    /// As [`Self::generate`].
    pub async fn encode_prompts(&mut self, request: &Request, on_event: OnEvent<'_>) -> Result<Vec<Encoded>> {
        let mut encoded = Vec::new();
        if is_guided(request) {
            encoded.push(match &request.negative {
                None if self.checkpoint.force_zeros_for_empty_prompt => {
                    let unet = &self.checkpoint.unet.1;
                    let positions = self.checkpoint.text[0].1.max_positions;
                    Encoded {
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

    async fn encode(&mut self, text: &str, on_event: OnEvent<'_>) -> Result<Encoded> {
        if let Some(encoded) = self.encoded.get(text) {
            return Ok(encoded.clone());
        }
        let mut windows = Vec::new();
        for ((_, config), tokenizer) in self.checkpoint.text.iter().zip(&self.tokenizers) {
            windows.push(tokenizer.window(text, config.max_positions)?);
        }
        // The negative prompt of conversations is nobody's: that it is cut tells nothing.
        if text != NEGATIVE_PROMPT
            && let Some(dropped) = windows.iter().find_map(|window| window.dropped.as_deref())
            && !on_event(Event::PromptCut(dropped))
        {
            return Err(Error::Cancelled);
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
            // The last encoder with a projection tells the meaning of the whole.
            if let Some(last) = last {
                pooled = last.values().await?;
            }
        }
        let encoded = Encoded { states: side_by_side(&states), pooled };
        if self.encoded.len() >= MAX_ENCODED {
            self.encoded.clear();
        }
        self.encoded.insert(text.to_owned(), encoded.clone());
        Ok(encoded)
    }

    /// The latents [pixels, channels] after all steps.
    async fn paint(
        &mut self,
        request: &Request,
        schedule: &Schedule,
        encoded: &[Encoded],
        on_event: OnEvent<'_>,
    ) -> Result<FeatureMap> {
        let mut generator = Generator::new(request.seed);
        let first = schedule.steps.first().ok_or_else(not_loaded)?;
        let start = self.first_sample(request, schedule, first, &mut generator, on_event).await?;
        let (height, width) = self.latent_size(request);
        let channels = self.checkpoint.vae.1.latent_channels;

        self.load_unet(on_event).await?;
        let Some(unet) = &self.unet else { return Err(not_loaded()) };
        let gpu = self.gpu.clone();
        let mut recorder = gpu.record();
        let condition = condition(&mut recorder, unet, encoded, request)?;
        let pictures = encoded.len();
        let pixels = height * width;
        let sample = Tensor::new(&gpu, &[pixels, channels], &start, "latents")?;
        let denoised = Tensor::zeros(&gpu, &[pixels, channels], "denoised latents")?;
        let scaled: Vec<f32> = start.iter().map(|value| value * first.input_scale).collect();
        let input = Tensor::new(&gpu, &[pictures * pixels, channels], &scaled.repeat(pictures), "model input")?;

        let steps = schedule.steps.len();
        told(on_event, Event::Step(0, steps))?;
        let mut pending: Option<Readback> = None;
        for (index, step) in schedule.steps.iter().enumerate() {
            let map = FeatureMap { height, width, values: input.clone() };
            let output = unet.forward(&mut recorder, &map, step.timestep, &condition)?;
            let noise = if step.draws_noise {
                let drawn = channels_last(&generator.randn(pixels * channels, request.noise), channels);
                Some(Tensor::upload(&mut recorder, &[pixels, channels], &drawn, "noise")?)
            } else {
                None
            };
            let next_scale = schedule.steps.get(index + 1).map_or(1.0, |next| next.input_scale);
            let numbers = numbers(step, request, next_scale);
            ops::denoise(&mut recorder, &numbers, &output.values, noise.as_ref(), [&sample, &denoised, &input])?;
            let shown = if request.previews { denoised.clone() } else { denoised.slice_rows(0..1) };
            let readback = shown.read_back(&mut recorder);
            std::mem::replace(&mut recorder, gpu.record()).submit()?;
            // The step before has been running while this one was recorded.
            if let Some(readback) = pending.replace(readback) {
                report(readback, index, steps, request, (width, height), on_event).await?;
            }
        }
        if let Some(readback) = pending {
            report(readback, steps, steps, request, (width, height), on_event).await?;
        }
        Ok(FeatureMap { height, width, values: sample })
    }

    /// What the first step begins with, [pixels, channels].
    async fn first_sample(
        &mut self,
        request: &Request,
        schedule: &Schedule,
        first: &Step,
        generator: &mut Generator,
        on_event: OnEvent<'_>,
    ) -> Result<Vec<f32>> {
        let channels = self.checkpoint.vae.1.latent_channels;
        let count = self.latent_len(request);
        let picture = match &request.start {
            Start::Image(image, _) => {
                // diffusers draws the autoencoder's noise first.
                let drawn = channels_last(&generator.randn(count, request.noise), channels);
                Some(self.encode_image(image, &drawn, on_event).await?)
            }
            Start::Noise | Start::Latents { .. } => None,
        };
        let noise = match &request.start {
            Start::Latents { values, .. } => channels_last(values, channels),
            _ => channels_last(&generator.randn(count, request.noise), channels),
        };
        Ok(match picture {
            None => noise.into_iter().map(|noise| noise * schedule.initial_scale).collect(),
            Some(picture) => {
                let [of_picture, of_noise] = first.start;
                picture.iter().zip(noise).map(|(picture, noise)| of_picture * picture + of_noise * noise).collect()
            }
        })
    }
}

/// The parts that are loaded and dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Text,
    Unet,
    Vae,
}

impl Part {
    fn bytes(self, plan: &Plan) -> u64 {
        let names: &[&str] = match self {
            Self::Text => &[TEXT_1, TEXT_2],
            Self::Unet => &[UNET],
            Self::Vae => &[VAE],
        };
        plan.parts.iter().filter(|(name, _)| names.contains(name)).map(|(_, bytes)| bytes).sum()
    }
}

impl Diffusion {
    /// Drops what is not needed for `part`, where both do not fit into what may be used beside the work itself.
    fn make_room(&mut self, part: Part) {
        let Some(limit) = self.gpu.memory().limit else { return };
        let needed = part.bytes(&self.plan) + WORKING_BYTES.min(limit / 4);
        // The text encoders first: what they gave is remembered.
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

    /// Drops the parts that are not needed for `part`; whether there were any.
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
        Loader::new(&self.gpu, weights.clone(), precision, self.options.on_progress.clone())
    }

    async fn load_text(&mut self, on_event: OnEvent<'_>) -> Result<()> {
        if self.text.is_some() {
            return Ok(());
        }
        self.make_room(Part::Text);
        let mut encoders = Vec::new();
        for (name, (weights, config)) in [TEXT_1, TEXT_2].into_iter().zip(&self.checkpoint.text) {
            told(on_event, Event::Loading(name))?;
            encoders.push(TextEncoder::load(&self.loader(weights, self.options.precision), config).await?);
        }
        self.gpu.flush_writes().await?;
        self.text = encoders.try_into().ok();
        Ok(())
    }

    async fn load_unet(&mut self, on_event: OnEvent<'_>) -> Result<()> {
        if self.unet.is_some() {
            return Ok(());
        }
        self.make_room(Part::Unet);
        told(on_event, Event::Loading(UNET))?;
        let (weights, config) = &self.checkpoint.unet;
        let unet = Unet::load(&self.loader(weights, self.options.precision), config).await?;
        self.gpu.flush_writes().await?;
        self.unet = Some(unet);
        Ok(())
    }

    /// The latents' mean or a draw around it for a picture, [pixels, channels].
    async fn encode_image(&mut self, image: &Rgb8, drawn: &[f32], on_event: OnEvent<'_>) -> Result<Vec<f32>> {
        self.make_room(Part::Vae);
        told(on_event, Event::Loading(VAE))?;
        // Used once, and not kept.
        let (weights, config) = &self.checkpoint.vae;
        let loader = self.loader(weights, vision_precision(self.options.precision));
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
        let pixels = Tensor::upload(&mut recorder, &[height * width, 4], &pixels, "picture")?;
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

    /// The picture that latents stand for, with no map larger than `largest` bytes if that is given.
    async fn decode(&mut self, latents: &FeatureMap, largest: Option<u64>, on_event: OnEvent<'_>) -> Result<Rgb8> {
        if self.decoder.is_none() {
            self.make_room(Part::Vae);
            told(on_event, Event::Loading(VAE))?;
            let (weights, config) = &self.checkpoint.vae;
            let loader = self.loader(weights, vision_precision(self.options.precision));
            let decoder = VaeDecoder::load(&loader, config).await?;
            self.gpu.flush_writes().await?;
            self.decoder = Some(decoder);
        }
        told(on_event, Event::Decoding)?;
        let Some(decoder) = &self.decoder else { return Err(not_loaded()) };
        let mut recorder = self.gpu.record();
        let picture = match largest {
            Some(largest) => decoder.decode_within(&mut recorder, latents, largest)?,
            None => decoder.decode(&mut recorder, latents)?,
        };
        let readback = picture.values.read_back(&mut recorder);
        recorder.submit()?;
        let values = readback.values::<f32>().await?;
        if let Some((index, value)) = values.iter().enumerate().find(|(_, value)| !value.is_finite()) {
            return Err(Error::BadValue { name: "picture".to_owned(), value: *value, index: index as u64 });
        }
        let channels = picture.channels().max(1);
        let bytes = values.chunks_exact(channels).flat_map(|pixel| pixel.iter().take(3)).map(|value| byte(*value));
        Rgb8::new(picture.width, picture.height, bytes.collect())
    }
}

/// Room that is kept free beside the parts for what they compute with.
const WORKING_BYTES: u64 = 1 << 30;
/// The largest map of the autoencoder after memory ran out.
const TIGHT_MAP: u64 = 32 << 20;

fn told(on_event: OnEvent<'_>, event: Event<'_>) -> Result<()> {
    if on_event(event) { Ok(()) } else { Err(Error::Cancelled) }
}

/// Whether the negative prompt counts.
fn is_guided(request: &Request) -> bool {
    // As diffusers: at 1 and below the prompt stands alone.
    request.guidance > 1.0
}

fn not_loaded() -> Error {
    Error::Internal("the schedule is empty or a part is not loaded".to_owned())
}

fn numbers(step: &Step, request: &Request, input_scale: f32) -> ops::Denoise {
    let next = step.next;
    ops::Denoise {
        guidance: is_guided(request).then_some(request.guidance),
        denoised: [step.denoised.sample, step.denoised.output],
        limit: step.denoised.clamp,
        next: [next.sample, next.output, next.denoised, next.previous, next.noise],
        input_scale,
    }
}

/// Waits for a step and tells of it.
async fn report(
    readback: Readback,
    done: usize,
    steps: usize,
    request: &Request,
    (width, height): (usize, usize),
    on_event: OnEvent<'_>,
) -> Result<()> {
    let values = readback.values::<f32>().await?;
    let mut go_on = on_event(Event::Step(done, steps));
    if request.previews && go_on {
        go_on = on_event(Event::Preview(&preview(&values, width, height)?));
    }
    if go_on { Ok(()) } else { Err(Error::Cancelled) }
}

fn condition(recorder: &mut Recorder, unet: &Unet, encoded: &[Encoded], request: &Request) -> Result<Condition> {
    let pictures = encoded.len();
    let states: Vec<f32> = encoded.iter().flat_map(|encoded| encoded.states.iter().copied()).collect();
    let pooled: Vec<f32> = encoded.iter().flat_map(|encoded| encoded.pooled.iter().copied()).collect();
    let width = unet.config().cross_attention_dim;
    let states = Tensor::upload(recorder, &[states.len() / width, width], &states, "text states")?;
    let pooled = Tensor::upload(recorder, &[pictures, pooled.len() / pictures], &pooled, "pooled text")?;
    let (height, width) = (request.height as f32, request.width as f32);
    // The size it had, where it was cropped, the size it is to have.
    let ids = [height, width, 0.0, 0.0, height, width];
    unet.condition(recorder, &states, &pooled, &vec![ids; pictures])
}

/// Matrices of as many rows, side by side: (columns, values) each.
fn side_by_side(parts: &[(usize, Vec<f32>)]) -> Vec<f32> {
    let rows = parts.iter().map(|(columns, values)| values.len() / columns.max(&1)).min().unwrap_or(0);
    let row = |row: usize| {
        parts.iter().flat_map(move |(columns, values)| values[row * columns..(row + 1) * columns].iter().copied())
    };
    (0..rows).flat_map(row).collect()
}

/// [channels, pixels] as [pixels, channels].
fn channels_last(values: &[f32], channels: usize) -> Vec<f32> {
    let pixels = values.len() / channels.max(1);
    (0..pixels).flat_map(|pixel| (0..channels).map(move |channel| values[channel * pixels + pixel])).collect()
}
