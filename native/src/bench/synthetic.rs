//! `mgm bench --synthetic`: a released model's shapes with random weights that are generated on the device.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::time::Instant;

use mgm::image::Image;
use mgm::language::{ImageId, LanguageModel, Position, TokenGenerator};
use mgm::loader::{Loader, vision_precision};
use mgm::memory_plan::MemoryPlan;
use mgm::ops::Sampling;
use mgm::tensor::Precision;
use mgm::variants::{self, Variant};
use mgm::vision::Vision;

use super::report::{Compiled, MIB, Meter, Report, SEED, dry_run, fill_progress};
use super::{BenchArgs, llm, sdxl};
use crate::{CliError, device_cache};

/// Prompt length where none is given, in tokens.
const PREFILL: u32 = 640;

/// Width and height of the test image, in pixels.
const IMAGE_SIDE: usize = 640;

pub async fn run(name: &str, arguments: &BenchArgs) -> Result<(), CliError> {
    let variant = released(name)?;
    let precision = arguments.precision.unwrap_or(Precision::Q4);
    let plan = MemoryPlan::new(&variant.language, Some(&variant.vision), precision);
    let prefill = prompt_tokens(&variant, arguments)?;
    let decode = arguments.decode as usize;
    if arguments.dry_run {
        return dry_run(variant.name, &plan, precision, prefill + decode, arguments.json);
    }
    measure(&variant, &plan, precision, (prefill, decode), arguments).await?.print(arguments.json)
}

/// The released model of this name.
pub fn released(name: &str) -> mgm::Result<Variant> {
    variants::released(name).ok_or_else(|| mgm::Error::Unsupported {
        what: "model".to_owned(),
        found: name.to_owned(),
        supported: format!("{}, {}", variants::NAMES.join(", "), sdxl::NAME),
    })
}

/// The length of the prompt, which fits into the model's context with the tokens to generate.
pub fn prompt_tokens(variant: &Variant, arguments: &BenchArgs) -> mgm::Result<usize> {
    let prefill = arguments.prefill.unwrap_or(PREFILL) as usize;
    let (tokens, limit) = (prefill + arguments.decode as usize, variant.language.max_positions);
    if tokens > limit { Err(mgm::Error::PromptTooLong { tokens, limit }) } else { Ok(prefill) }
}

async fn measure(
    variant: &Variant,
    plan: &MemoryPlan,
    precision: Precision,
    (prefill, decode): (usize, usize),
    arguments: &BenchArgs,
) -> Result<Report, CliError> {
    let gpu = device_cache::open(&arguments.device.options()).await?;
    mgm::tuning::check_rounding_kernels(&gpu).await?;
    plan.check(&gpu, prefill + decode)?;
    let started = Instant::now();
    let (bar, on_progress) = fill_progress(plan);
    let loader = Loader::random(&gpu, SEED, vision_precision(precision), Some(on_progress));
    let sizes = &variant.vision;
    let hidden = variant.language.hidden_size;
    let vision = Vision::random(&loader, sizes.config.clone(), &sizes.clip, &sizes.convnext, hidden).await?;
    let language = LanguageModel::load(&loader.at(precision), &variant.language).await?;
    gpu.flush_writes().await?;
    bar.finish_and_clear();
    if arguments.tune {
        llm::tune_matmuls(&gpu, &language).await?;
    }
    let load_ms = started.elapsed().as_secs_f64() * 1000.0;
    let planned = gpu.plan();
    let (vision_run, language_run) = (vision.dry_run(&planned).await?, language.dry_run(&planned)?);
    let kernels: HashSet<_> = vision_run.kernels().into_keys().chain(language_run.kernels().into_keys()).collect();
    let (pipelines, started) = (kernels.len(), Instant::now());
    device_cache::Preparation::start(&gpu, kernels).finish();
    let compile_ms = started.elapsed().as_secs_f64() * 1000.0;
    gpu.take_profile().await?;

    let mut parts = Vec::new();
    note!("mgm: encoding the image …");
    let pixels = (0..IMAGE_SIDE * IMAGE_SIDE * 3).map(|index| (index * 31 % 251) as u8).collect();
    let views = vision.preprocess().views(&Image::new(IMAGE_SIDE, IMAGE_SIDE, pixels)?)?;
    let meter = Meter::start(&gpu);
    let mut recorder = gpu.record();
    let tokens =
        vision.encode_and_wait(&mut recorder, &views, None, &mut |_, _| ControlFlow::Continue(())).await?.tokens;
    drop(recorder);
    parts.push(meter.stop("vision", tokens.rows()));
    gpu.trim();

    note!("mgm: prefilling …");
    let visual = tokens.rows().min(prefill.saturating_sub(1));
    let positions: Vec<Position> = (0..prefill)
        .map(|index| match index.checked_sub(prefill - visual) {
            Some(row) => Position::Visual { image: ImageId(0), row: row as u32 },
            None => Position::Text(llm::token_id(index, variant.language.vocab_size)),
        })
        .collect();
    let meter = Meter::start(&gpu);
    let mut cache = language.cache();
    let images = &[(ImageId(0), tokens.clone())];
    let end = llm::prefill(&gpu, &language, &positions, images, &mut cache, decode)?;
    let mut generator = TokenGenerator::new(&language, &gpu, &mut cache, end, decode, Sampling::GREEDY, || 0.0)?;
    // Prefill ends with the first token.
    generator.next().await?;
    parts.push(meter.stop("prefill", prefill));

    note!("mgm: decoding …");
    let meter = Meter::start(&gpu);
    while generator.next().await?.is_some() {}
    // The first steps were recorded before the first token was there.
    let host_ms = generator.host_time().as_secs_f64() * 1000.0 / decode.max(1) as f64;
    parts.push(meter.stop("decode", decode.saturating_sub(1)).with_host_ms_per_token(host_ms));
    if arguments.device.profile {
        note!("{}", gpu.take_profile().await?);
    }
    Ok(Report {
        model: variant.name,
        precision: precision.to_string(),
        adapter: gpu.adapter().name.clone(),
        load_ms,
        compile: Some(Compiled { pipelines, milliseconds: compile_ms }),
        peak_memory_mib: gpu.memory().peak as f64 / MIB,
        parts,
    })
}
