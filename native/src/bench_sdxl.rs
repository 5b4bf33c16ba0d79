//! `mgm bench --synthetic sdxl`: Stable Diffusion XL at its released size with random weights: both text encoders, a step of the
//! UNet for a prompt and a negative prompt, and a picture out of latents.

use std::io::Write;
use std::rc::Rc;
use std::time::Instant;

use mgm::diffusion::{TextEncoder, TextEncoderConfig, Unet, UnetConfig, VaeConfig, VaeDecoder};
use mgm::gpu::{Gpu, Recorder};
use mgm::load::{Loader, OnProgress, vision_precision};
use mgm::ops::{FeatureMap, concatenate};
use mgm::plan::Plan;
use mgm::tensor::{Precision, Tensor};

use crate::args::BenchArgs;
use crate::bench::{Meter, Report, SEED, dry_run, show};
use crate::{Failure, kept, progress};

/// The model's name on the command line.
pub const NAME: &str = "sdxl";
/// Pixels of the released model's pictures.
const SIZE: (usize, usize) = (1024, 1024);
/// Tokens of a prompt.
const TOKENS: usize = 77;
/// A prompt and a negative prompt, which guidance takes together.
const PICTURES: usize = 2;

pub async fn run(arguments: &BenchArgs) -> Result<(), Failure> {
    if arguments.tune {
        let reason = format!("--tune is for language models and --roofline: {NAME} has neither");
        return Err(mgm::Error::InvalidArgument(reason).into());
    }
    let precision = arguments.precision.unwrap_or(Precision::F16);
    let (width, height) = arguments.size.unwrap_or(SIZE);
    let vae = VaeConfig::sdxl();
    let scale = vae.pixels_per_latent();
    if !width.is_multiple_of(scale) || !height.is_multiple_of(scale) {
        let reason = format!("{width}x{height}: sides are multiples of {scale} pixels");
        return Err(mgm::Error::InvalidArgument(reason).into());
    }
    let plan = Plan::of_released_diffusion(precision);
    if arguments.dry_run {
        return dry_run(NAME, &plan, precision, 0, arguments.json);
    }
    let gpu = kept::open(&arguments.device.options()).await?;
    plan.check(&gpu, 0)?;
    let started = Instant::now();
    let bar = progress::bytes(plan.weights(), "filling");
    let counter = bar.clone();
    let on_progress: OnProgress = Rc::new(move |bytes| {
        counter.inc(bytes);
        true
    });
    let loader = Loader::random(&gpu, SEED, precision, Some(on_progress));
    let text = [
        TextEncoder::load(&loader.pp("text_encoder"), &TextEncoderConfig::sdxl_1()).await?,
        TextEncoder::load(&loader.pp("text_encoder_2"), &TextEncoderConfig::sdxl_2()).await?,
    ];
    let unet_config = UnetConfig::sdxl();
    let unet = Unet::load(&loader.pp("unet"), &unet_config).await?;
    let decoder = VaeDecoder::load(&loader.at(vision_precision(precision)).pp("vae"), &vae).await?;
    gpu.flush_writes().await?;
    bar.finish_and_clear();
    let load_ms = started.elapsed().as_secs_f64() * 1000.0;
    gpu.take_profile().await?;

    let mut parts = Vec::new();
    note!("mgm: reading …");
    let mut recorder = gpu.record();
    let meter = Meter::start(&gpu);
    let prompts = encode(&mut recorder, &text)?;
    recorder.finish().await?;
    parts.push(meter.stop("text", PICTURES * TOKENS));
    drop(text);

    note!("mgm: a step …");
    let (rows, columns) = (height / scale, width / scale);
    let latents = noise(&gpu, PICTURES, (rows, columns), unet_config.in_channels)?;
    let sizes = [[height as f32, width as f32, 0.0, 0.0, height as f32, width as f32]; PICTURES];
    let condition = unet.condition(&mut recorder, &prompts.context, &prompts.pooled, &sizes)?;
    recorder.finish().await?;
    // What comes before the first step comes once.
    let meter = Meter::start(&gpu);
    let predicted = unet.forward(&mut recorder, &latents, 500.0, &condition)?;
    recorder.finish().await?;
    parts.push(meter.stop("UNet", PICTURES * rows * columns));
    drop((predicted, condition, prompts, latents, unet));
    gpu.trim();

    note!("mgm: decoding …");
    let latents = noise(&gpu, 1, (rows, columns), vae.latent_channels)?;
    let meter = Meter::start(&gpu);
    let picture = decoder.decode(&mut recorder, &latents)?;
    recorder.finish().await?;
    parts.push(meter.stop("VAE", picture.values.rows()));
    if arguments.device.profile {
        note!("{}", gpu.take_profile().await?);
    }
    let report = Report {
        model: NAME,
        precision: precision.to_string(),
        adapter: gpu.adapter().name.clone(),
        load_ms,
        peak_memory_mib: gpu.memory().peak as f64 / (1 << 20) as f64,
        parts,
    };
    let mut out = std::io::stdout().lock();
    if !arguments.json {
        writeln!(out, "{width} x {height} pixels; tokens are words, latents (of both prompts) and pixels")?;
    }
    show(&mut out, &report, arguments.json)
}

struct Prompts {
    /// [PICTURES * TOKENS, width of both encoders]
    context: Tensor,
    /// [PICTURES, width]
    pooled: Tensor,
}

/// Both encoders' states of both prompts.
fn encode(recorder: &mut Recorder, [first, second]: &[TextEncoder; 2]) -> mgm::Result<Prompts> {
    let ids: Vec<u32> = (0..TOKENS as u32).map(|index| index * 577 % 49_000).collect();
    let mut context = Vec::new();
    let mut pooled = Vec::new();
    for _ in 0..PICTURES {
        let [a, b] = [first.forward(recorder, &ids)?, second.forward(recorder, &ids)?];
        let map = |pixels: Tensor| FeatureMap { height: TOKENS, width: 1, values: pixels };
        context.push(concatenate(recorder, &map(a.hidden), &map(b.hidden))?.values);
        pooled.extend(b.pooled);
    }
    Ok(Prompts { context: stacked(recorder, &context)?, pooled: stacked(recorder, &pooled)? })
}

fn stacked(recorder: &mut Recorder, parts: &[Tensor]) -> mgm::Result<Tensor> {
    let rows = parts.iter().map(Tensor::rows).sum();
    let columns = parts.first().map_or(0, Tensor::columns);
    let all = Tensor::temporary(recorder.gpu(), &[rows, columns], "states")?;
    let mut row = 0;
    for part in parts {
        part.copy_to(recorder, &all, row);
        row += part.rows();
    }
    Ok(all)
}

/// Numbers between -2 and 2 as latents of several pictures.
fn noise(gpu: &Gpu, pictures: usize, (height, width): (usize, usize), channels: usize) -> mgm::Result<FeatureMap> {
    let count = pictures * height * width * channels;
    let values: Vec<f32> = (0..count).map(|index| (index * 7919 % 997) as f32 / 249.0 - 2.0).collect();
    let pixels = Tensor::new(gpu, &[pictures * height * width, channels], &values, "latents")?;
    Ok(FeatureMap { height, width, values: pixels })
}
