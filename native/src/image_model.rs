//! Generates images with Stable Diffusion XL and shows progress on standard error.

use std::cell::{Cell, RefCell};
use std::ops::ControlFlow;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use clap::Args;
use indicatif::ProgressBar;
use mgm::diffusion::limits::{
    DEFAULT_GUIDANCE_SCALE, DEFAULT_NUM_INFERENCE_STEPS, MAX_NUM_INFERENCE_STEPS, check_guidance_scale,
    check_num_inference_steps, check_size,
};
use mgm::diffusion::png_metadata::ImageSettings;
use mgm::diffusion::{DiffusionEvent, DiffusionOptions, DiffusionPipeline, InitialLatents, NoiseType};
use mgm::gpu::Gpu;
use mgm::image::Image;
use mgm::text::prompt_weights::PromptWeights;
use mgm::weights::sdxl::config::{PredictionType, SchedulerOverride};
use mgm::{Error, Result};
use serde::Serialize;

use crate::args::{parse_checked, parse_image_size};
use crate::interrupt::continue_unless;
use crate::progress;
use crate::sdxl::{CheckedModel, SdxlArgs};
use crate::terminal_image::ImageProtocol;

/// How images are generated.
#[derive(Debug, Clone, Args)]
pub struct ImageArgs {
    /// Number of denoising steps
    #[arg(
        long,
        visible_alias = "num-inference-steps",
        default_value_t = DEFAULT_NUM_INFERENCE_STEPS,
        value_parser = parse_steps,
        allow_hyphen_values = true
    )]
    pub steps: usize,
    /// How closely to follow the prompt; 1 ignores the negative prompt and roughly halves the time per step
    #[arg(long, default_value_t = DEFAULT_GUIDANCE_SCALE, value_parser = parse_guidance_scale, allow_hyphen_values = true)]
    pub guidance_scale: f32,
    /// Width and height in pixels, multiples of 8 [default: the model's, 1024x1024 for SDXL]
    #[arg(long, value_name = "WxH", value_parser = parse_image_size)]
    size: Option<(usize, usize)>,
    /// Width in pixels; the same as --size together with --height
    #[arg(long, value_name = "N", value_parser = parse_side, requires = "height", conflicts_with = "size")]
    width: Option<usize>,
    /// Height in pixels
    #[arg(long, value_name = "N", value_parser = parse_side, requires = "width", conflicts_with = "size")]
    height: Option<usize>,
    /// Scheduler: euler, euler-a, ddim, dpm++-2m, dpm++-2m-sde, lcm or turbo, optionally followed by -karras,
    /// -exponential, -leading, -trailing, -linspace or -zsnr (zero terminal SNR) [default: the model's]
    #[arg(long, value_name = "NAME", value_parser = parse_scheduler)]
    pub scheduler: Option<SchedulerOverride>,
    /// What the UNet's output is: epsilon, v_prediction or sample [default: as the model declares]
    #[arg(long, value_name = "TYPE", value_parser = parse_prediction)]
    pub prediction_type: Option<PredictionType>,
    /// Whether prompts have weights such as (word:1.3), and are encoded in chunks if they exceed the text encoders'
    /// window: on, off (as in diffusers' own pipelines), auto (on if a bracket has a number)
    #[arg(long, value_name = "MODE", default_value = "auto", value_parser = ["on", "off", "auto"])]
    pub prompt_weights: String,
    /// Data type of the random noise, which changes the image that a seed gives: f32, f16 [default: f32 at precision
    /// f32, else f16, as in diffusers]
    #[arg(long, value_parser = ["f32", "f16"])]
    pub noise: Option<String>,
    /// Don't show previews in terminals that can display images
    #[arg(long)]
    pub no_preview: bool,
}

impl ImageArgs {
    /// Width and height in pixels, if they are given.
    pub fn size(&self) -> Option<(usize, usize)> {
        self.size.or(self.width.zip(self.height))
    }
}

fn parse_steps(text: &str) -> std::result::Result<usize, String> {
    parse_checked(text, |steps| check_num_inference_steps(steps, MAX_NUM_INFERENCE_STEPS), "a number of steps")
}

fn parse_guidance_scale(text: &str) -> std::result::Result<f32, String> {
    parse_checked(text, check_guidance_scale, "a guidance scale")
}

fn parse_side(text: &str) -> std::result::Result<usize, String> {
    // Models have at least this many pixels per latent; those with more check again.
    parse_checked(text, |side| check_size((side, side), 8), "a number of pixels")
}

fn parse_scheduler(text: &str) -> std::result::Result<SchedulerOverride, String> {
    text.parse().map_err(|error: Error| error.to_string())
}

fn parse_prediction(text: &str) -> std::result::Result<PredictionType, String> {
    text.parse().map_err(|error: Error| error.to_string())
}

/// What one image starts from.
#[derive(Clone)]
pub struct ImageRequest<'a> {
    pub prompt: &'a str,
    pub negative_prompt: Option<&'a str>,
    pub initial_latents: InitialLatents,
    pub seed: u64,
    /// Width and height, in pixels.
    pub size: (usize, usize),
}

/// A generated image.
pub struct GeneratedImage {
    pub image: Image,
    pub settings: ImageSettings,
    /// Milliseconds of one denoising step.
    step_ms: f64,
    total_ms: f64,
}

/// An image in a JSON report.
#[derive(Serialize)]
pub struct ImageReport {
    file: String,
    settings: ImageSettings,
    step_ms: f64,
    total_ms: f64,
}

impl ImageReport {
    pub fn new(file: &Path, generated: GeneratedImage) -> Self {
        let GeneratedImage { settings, step_ms, total_ms, .. } = generated;
        Self { file: file.display().to_string(), settings, step_ms, total_ms }
    }

    pub fn file(&self) -> &str {
        &self.file
    }
}

/// A Stable Diffusion XL model with fixed settings that reports progress on standard error.
pub struct ImageModel {
    source: SdxlArgs,
    options: DiffusionOptions,
    pipeline: DiffusionPipeline,
    arguments: ImageArgs,
    model: String,
    stop: Arc<AtomicBool>,
    /// Progress of the part that is being loaded.
    loading: Rc<RefCell<Option<ProgressBar>>>,
    terminal: Option<ImageProtocol>,
    /// A preview is on the screen, right above the cursor.
    preview_shown: bool,
}

impl ImageModel {
    pub async fn open(
        gpu: &Gpu,
        (checkpoint, tokenizers): CheckedModel,
        model: &SdxlArgs,
        arguments: &ImageArgs,
        stop: Arc<AtomicBool>,
    ) -> Result<Self> {
        let precision = model.precision.unwrap_or_else(|| checkpoint.stored_precision());
        let loading: Rc<RefCell<Option<ProgressBar>>> = Rc::default();
        let (bar, stopping) = (Rc::clone(&loading), Arc::clone(&stop));
        let on_progress = Rc::new(move |bytes| {
            if let Some(bar) = &*bar.borrow() {
                bar.inc(bytes);
            }
            continue_unless(&stopping)
        });
        let options = DiffusionOptions::default().with_precision(precision).with_progress(on_progress);
        let options = options.with_tokenizers(tokenizers);
        Ok(Self {
            pipeline: DiffusionPipeline::open(gpu, checkpoint, options.clone()).await?,
            source: model.clone(),
            options,
            arguments: arguments.clone(),
            model: model.name()?,
            stop,
            loading,
            terminal: if arguments.no_preview { None } else { ImageProtocol::detect() },
            preview_shown: false,
        })
    }

    /// Uses another device, to which nothing is loaded yet.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn move_to(&mut self, gpu: &Gpu) -> Result<()> {
        self.pipeline = DiffusionPipeline::open(gpu, self.source.open().await?, self.options.clone()).await?;
        Ok(())
    }

    /// Device memory that the parts not yet loaded need, in bytes.
    pub fn missing_bytes(&self) -> u64 {
        self.pipeline.missing_bytes()
    }

    /// Drops the weights from the device. The next image loads them again.
    pub fn release(&mut self) {
        self.pipeline.release();
    }

    /// The size of `--size`, or the model's own.
    pub fn default_size(&self) -> (usize, usize) {
        self.arguments.size().unwrap_or_else(|| self.pipeline.checkpoint().default_size())
    }

    /// Generates an image.
    ///
    /// # Errors
    /// [`Error::Cancelled`] after a stop, [`Error::OutOfMemory`], and those of the model.
    pub async fn generate(&mut self, request: ImageRequest<'_>) -> Result<GeneratedImage> {
        let started = Instant::now();
        let (first, last) = (Cell::new(None), Cell::new(None));
        let mut bar = ProgressBar::hidden();
        let plan = self.pipeline.plan().clone();
        let Self { pipeline, arguments, model, stop, loading, terminal, preview_shown, .. } = self;
        let finish_loading = || {
            if let Some(bar) = loading.borrow_mut().take() {
                bar.finish_and_clear();
            }
        };
        let mut failed = Ok(());
        let noise = arguments.noise.as_deref().map(|name| if name == "f16" { NoiseType::F16 } else { NoiseType::F32 });
        let mut generate = pipeline
            .generate(request.prompt)
            .num_inference_steps(arguments.steps)
            .guidance_scale(arguments.guidance_scale)
            .size(request.size.0, request.size.1)
            .prompt_weights(arguments.prompt_weights.parse::<PromptWeights>()?)
            .scheduler(arguments.scheduler)
            .prediction_type(arguments.prediction_type)
            .seed(request.seed)
            .initial_latents(request.initial_latents)
            .noise(noise)
            .model_name(model.as_str())
            .previews(terminal.is_some());
        if let Some(negative_prompt) = request.negative_prompt {
            generate = generate.negative_prompt(negative_prompt);
        }
        let generated = generate
            .on_event(|event| {
                match event {
                    DiffusionEvent::PromptCut { dropped } => {
                        note!("mgm: note: the prompt is too long for the text encoders; ignored: {dropped:?}; --prompt-weights on encodes all of it");
                    }
                    DiffusionEvent::Loading { part } => {
                        finish_loading();
                        let bytes = plan.parts.iter().find(|(name, _)| *name == part).map_or(0, |(_, bytes)| *bytes);
                        *loading.borrow_mut() = Some(progress::bytes(bytes, "loading"));
                    }
                    DiffusionEvent::Step { done, total } => {
                        finish_loading();
                        if done == 0 {
                            bar = progress::count(total as u64, "denoising");
                        } else {
                            first.set(first.get().or(Some((done, Instant::now()))));
                            last.set(Some((done, Instant::now())));
                        }
                        bar.set_position(done as u64);
                    }
                    DiffusionEvent::Preview { image } => {
                        if let Some(terminal) = *terminal {
                            let replace = std::mem::replace(preview_shown, true);
                            failed = bar.suspend(|| terminal.show(&mut std::io::stderr().lock(), image, replace));
                        }
                    }
                    DiffusionEvent::Decoding => finish_loading(),
                    _ => {}
                }
                if failed.is_err() { ControlFlow::Break(()) } else { continue_unless(stop) }
            })
            .await;
        finish_loading();
        bar.finish_and_clear();
        failed.map_err(|error| Error::io("standard error", &error))?;
        // The first step includes one-time work, so the mean is over the others.
        let step_ms = match (first.get(), last.get()) {
            (Some((before, from)), Some((done, to))) if done > before => {
                to.duration_since(from).as_secs_f64() * 1000.0 / (done - before) as f64
            }
            _ => 0.0,
        };
        let mgm::GeneratedImage { image, settings, .. } = generated?;
        Ok(GeneratedImage { image, settings, step_ms, total_ms: started.elapsed().as_secs_f64() * 1000.0 })
    }

    /// Shows a finished image in place of its preview, if the terminal can display images.
    pub fn show(&mut self, image: &Image) -> std::io::Result<()> {
        if let Some(terminal) = self.terminal {
            terminal.show(&mut std::io::stderr().lock(), image, self.preview_shown)?;
            self.preview_shown = false;
        }
        Ok(())
    }
}
