//! `mgm bench --synthetic sdxl`: Stable Diffusion XL at the released shapes, with random weights. Measures both text
//! encoders, one UNet step for a prompt and a negative prompt, and the VAE decoder.

use std::io::Write;
use std::time::Instant;

use mgm::diffusion::{TextEncoder, Unet, VaeDecoder};
use mgm::gpu::{Gpu, Recorder};
use mgm::loader::{Loader, vision_precision};
use mgm::memory_plan::MemoryPlan;
use mgm::ops::{FeatureMap, concatenate};
use mgm::tensor::{Precision, Tensor};
use mgm::weights::sdxl::config::{TextEncoderConfig, UnetConfig, VaeConfig};

use super::BenchArgs;
use super::report::{MIB, Meter, Report, SEED, dry_run, fill_progress};
use crate::{CliError, device_cache};

/// The model's name on the command line.
pub const NAME: &str = "sdxl";
/// Width and height of the released model's images, in pixels.
const SIZE: (usize, usize) = (1024, 1024);
/// Tokens per prompt.
const TOKENS: usize = 77;
/// Classifier-free guidance runs the prompt and the negative prompt as one batch.
const BATCH: usize = 2;

pub async fn run(arguments: &BenchArgs) -> Result<(), CliError> {
    if arguments.tune {
        let reason = format!("--tune needs a language model or --roofline; {NAME} has no language model");
        return Err(mgm::Error::InvalidArgument(reason).into());
    }
    let precision = arguments.precision.unwrap_or(Precision::F16);
    let (width, height) = image_size(arguments)?;
    let vae = VaeConfig::sdxl();
    let scale = vae.pixels_per_latent();
    let plan = MemoryPlan::for_released_diffusion(precision);
    if arguments.dry_run {
        return dry_run(NAME, &plan, precision, 0, arguments.json);
    }
    let gpu = device_cache::open(&arguments.device.options()).await?;
    mgm::tuning::check_rounding_kernels(&gpu).await?;
    plan.check(&gpu, 0)?;
    let started = Instant::now();
    let (bar, on_progress) = fill_progress(&plan);
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
    note!("mgm: encoding the prompts …");
    let mut recorder = gpu.record();
    let meter = Meter::start(&gpu);
    let prompts = encode(&mut recorder, &text)?;
    recorder.finish().await?;
    parts.push(meter.stop("text", BATCH * TOKENS));
    drop(text);

    note!("mgm: denoising …");
    let (rows, columns) = (height / scale, width / scale);
    let latents = noise(&gpu, BATCH, (rows, columns), unet_config.in_channels)?;
    let sizes = [[height as f32, width as f32, 0.0, 0.0, height as f32, width as f32]; BATCH];
    let condition = unet.condition(&mut recorder, &prompts.context, &prompts.pooled, &sizes)?;
    recorder.finish().await?;
    // Start here: the conditioning above runs once per image, not once per step.
    let meter = Meter::start(&gpu);
    let predicted = unet.forward(&mut recorder, &latents, 500.0, &condition)?;
    recorder.finish().await?;
    parts.push(meter.stop("UNet", BATCH * rows * columns));
    drop((predicted, condition, prompts, latents, unet));
    gpu.trim();

    note!("mgm: decoding …");
    let latents = noise(&gpu, 1, (rows, columns), vae.latent_channels)?;
    let meter = Meter::start(&gpu);
    let image = decoder.decode(&mut recorder, &latents)?;
    recorder.finish().await?;
    parts.push(meter.stop("VAE", image.values.rows()));
    if arguments.device.profile {
        note!("{}", gpu.take_profile().await?);
    }
    let report = Report {
        model: NAME,
        precision: precision.to_string(),
        adapter: gpu.adapter().name.clone(),
        load_ms,
        compile: None,
        peak_memory_mib: gpu.memory().peak as f64 / MIB,
        parts,
    };
    if !arguments.json {
        writeln!(
            std::io::stdout(),
            "{width} x {height} pixels; tokens are prompt tokens (text), latents of both prompts (UNet) or pixels (VAE)"
        )?;
    }
    report.print(arguments.json)
}

/// Width and height of the image, multiples of a latent's pixels.
pub fn image_size(arguments: &BenchArgs) -> mgm::Result<(usize, usize)> {
    let (width, height) = arguments.size.unwrap_or(SIZE);
    let scale = VaeConfig::sdxl().pixels_per_latent();
    if width.is_multiple_of(scale) && height.is_multiple_of(scale) {
        return Ok((width, height));
    }
    let reason = format!("--size {width}x{height}: expected multiples of {scale} pixels");
    Err(mgm::Error::InvalidArgument(reason))
}

struct Prompts {
    /// [BATCH * TOKENS, sum of both encoders' widths]
    context: Tensor,
    /// [BATCH, width]
    pooled: Tensor,
}

/// Runs both text encoders on both prompts.
fn encode(recorder: &mut Recorder, [first, second]: &[TextEncoder; 2]) -> mgm::Result<Prompts> {
    let ids: Vec<u32> = (0..TOKENS as u32).map(|index| index * 577 % 49_000).collect();
    let mut context = Vec::new();
    let mut pooled = Vec::new();
    for _ in 0..BATCH {
        let [a, b] = [first.forward(recorder, &ids)?, second.forward(recorder, &ids)?];
        let map = |values: Tensor| FeatureMap { height: TOKENS, width: 1, values };
        context.push(concatenate(recorder, &map(a.hidden), &map(b.hidden))?.values);
        pooled.extend(b.pooled);
    }
    Ok(Prompts { context: stack_rows(recorder, &context)?, pooled: stack_rows(recorder, &pooled)? })
}

fn stack_rows(recorder: &mut Recorder, parts: &[Tensor]) -> mgm::Result<Tensor> {
    let rows = parts.iter().map(Tensor::rows).sum();
    let columns = parts.first().map_or(0, Tensor::columns);
    let all = Tensor::temporary(recorder.gpu(), &[rows, columns], "text encoder states")?;
    let mut row = 0;
    for part in parts {
        part.copy_to(recorder, &all, row);
        row += part.rows();
    }
    Ok(all)
}

/// Pseudorandom latents for a batch of images, with values from -2 to 2.
fn noise(gpu: &Gpu, batch: usize, (height, width): (usize, usize), channels: usize) -> mgm::Result<FeatureMap> {
    let count = batch * height * width * channels;
    let values: Vec<f32> = (0..count).map(|index| (index * 7919 % 997) as f32 / 249.0 - 2.0).collect();
    let values = Tensor::new(gpu, &[batch * height * width, channels], &values, "latents")?;
    Ok(FeatureMap { height, width, values })
}
