//! `mgm bench --synthetic`: a released model's shapes with random weights made on the device; `--gguf`: a file; `--roofline`: the
//! kernels by themselves.

use std::io::Write;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::time::Instant;

use mgm::gpu::{Cost, Gpu};
use mgm::image::Rgb8;
use mgm::language::{Cache, Generator, Language, PREFILL_POSITIONS, Position};
use mgm::load::{Loader, OnProgress, vision_precision};
use mgm::ops::{Sampling, products};
use mgm::plan::Plan;
use mgm::tensor::{Precision, Tensor};
use mgm::tuning::{TuneOptions, tune};
use mgm::variants::{self, Variant};
use mgm::vision::Vision;
use serde::Serialize;

use crate::args::BenchArgs;
use crate::{Failure, bench_gguf, bench_roofline, bench_sdxl, kept, progress};

/// Seed of the random weights.
pub(crate) const SEED: u32 = 2024;

/// What a part of the run cost.
#[derive(Debug, Serialize)]
pub(crate) struct PartReport {
    name: &'static str,
    milliseconds: f64,
    tokens: usize,
    tokens_per_s: f64,
    gflop: f64,
    gflop_per_s: f64,
    gigabytes: f64,
    gigabytes_per_s: f64,
    dispatches: u64,
    /// Device memory in use at its end, in MiB.
    memory_mib: f64,
}

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) model: &'static str,
    pub(crate) precision: String,
    pub(crate) adapter: String,
    pub(crate) load_ms: f64,
    pub(crate) peak_memory_mib: f64,
    pub(crate) parts: Vec<PartReport>,
}

/// What a run would allocate.
#[derive(Debug, Serialize)]
struct DryRun {
    model: &'static str,
    precision: String,
    parts: Vec<PartPlan>,
    weight_bytes: u64,
    /// Of the prompt and the answer.
    positions: usize,
    cache_bytes: u64,
}

#[derive(Debug, Serialize)]
struct PartPlan {
    name: &'static str,
    bytes: u64,
}

const MIB: f64 = 1024.0 * 1024.0;

pub async fn run(arguments: BenchArgs) -> Result<(), Failure> {
    if arguments.roofline {
        return bench_roofline::run(&arguments).await;
    }
    if let Some(path) = &arguments.gguf {
        return bench_gguf::run(path, &arguments).await;
    }
    let name = arguments.synthetic.clone().unwrap_or_default();
    if name == bench_sdxl::NAME {
        return bench_sdxl::run(&arguments).await;
    }
    let Some(variant) = variants::released(&name) else {
        return Err(mgm::Error::Unsupported {
            what: "model".to_owned(),
            found: name,
            supported: format!("{}, {}", variants::NAMES.join(", "), bench_sdxl::NAME),
        }
        .into());
    };
    let precision = arguments.precision.unwrap_or(Precision::Q4);
    let plan = Plan::new(&variant.language, Some(&variant.vision), precision);
    let positions = prefill_length(&arguments) as usize + arguments.decode as usize;
    if positions > variant.language.max_positions {
        return Err(mgm::Error::PromptTooLong { tokens: positions, limit: variant.language.max_positions }.into());
    }
    if arguments.dry_run {
        return dry_run(variant.name, &plan, precision, positions, arguments.json);
    }
    let report = measure(&variant, &plan, precision, &arguments).await?;
    show(&mut std::io::stdout().lock(), &report, arguments.json)
}

/// Prints a report.
pub(crate) fn show(out: &mut impl Write, report: &Report, json: bool) -> Result<(), Failure> {
    if json {
        writeln!(out, "{}", serde_json::to_string(report).map_err(std::io::Error::other)?)?;
        return Ok(());
    }
    writeln!(
        out,
        "{} at {} on {}: random weights made in {:.1} s, {:.0} MiB at most",
        report.model,
        report.precision,
        report.adapter,
        report.load_ms / 1000.0,
        report.peak_memory_mib
    )?;
    writeln!(
        out,
        "{:<8} {:>10} {:>7} {:>10} {:>10} {:>10} {:>9} {:>8} {:>10} {:>10}",
        "part", "ms", "tokens", "tokens/s", "GFLOP", "GFLOP/s", "GB", "GB/s", "dispatches", "MiB"
    )?;
    for part in &report.parts {
        writeln!(
            out,
            "{:<8} {:>10.0} {:>7} {:>10.2} {:>10.1} {:>10.2} {:>9.2} {:>8.2} {:>10} {:>10.0}",
            part.name,
            part.milliseconds,
            part.tokens,
            part.tokens_per_s,
            part.gflop,
            part.gflop_per_s,
            part.gigabytes,
            part.gigabytes_per_s,
            part.dispatches,
            part.memory_mib
        )?;
    }
    Ok(())
}

/// Positions of the prompt.
fn prefill_length(arguments: &BenchArgs) -> u32 {
    arguments.prefill.unwrap_or(640)
}

/// Prints what a run would allocate: weights, and keys and values of `positions`.
pub(crate) fn dry_run(
    model: &'static str,
    plan: &Plan,
    precision: Precision,
    positions: usize,
    json: bool,
) -> Result<(), Failure> {
    let cache_bytes = plan.cache_per_position * positions as u64;
    let mut out = std::io::stdout().lock();
    if json {
        let parts: Vec<_> = plan.parts.iter().map(|(name, bytes)| PartPlan { name, bytes: *bytes }).collect();
        let weight_bytes = plan.weights();
        let report = DryRun { model, precision: precision.to_string(), parts, weight_bytes, positions, cache_bytes };
        writeln!(out, "{}", serde_json::to_string(&report).map_err(std::io::Error::other)?)?;
        return Ok(());
    }
    writeln!(out, "{model} at {precision}: GPU memory needed, in MiB")?;
    for (name, bytes) in &plan.parts {
        writeln!(out, "{name:<32} {:>10.1}", *bytes as f64 / MIB)?;
    }
    writeln!(out, "{:<32} {:>10.1}", "all weights", plan.weights() as f64 / MIB)?;
    if positions > 0 {
        let title = format!("keys and values, {positions} tokens");
        writeln!(out, "{title:<32} {:>10.1}", cache_bytes as f64 / MIB)?;
    }
    Ok(())
}

/// A stretch of work on the device, timed from its recording to its end.
pub(crate) struct Meter<'a> {
    gpu: &'a Gpu,
    started: Instant,
    dispatches: u64,
}

impl<'a> Meter<'a> {
    pub(crate) fn start(gpu: &'a Gpu) -> Self {
        gpu.take_cost();
        Self { gpu, started: Instant::now(), dispatches: gpu.dispatch_count() }
    }

    pub(crate) fn stop(self, name: &'static str, tokens: usize) -> PartReport {
        let seconds = self.started.elapsed().as_secs_f64();
        let Cost { bytes, flops } = self.gpu.take_cost();
        PartReport {
            name,
            milliseconds: seconds * 1000.0,
            tokens,
            tokens_per_s: tokens as f64 / seconds,
            gflop: flops / 1e9,
            gflop_per_s: flops / 1e9 / seconds,
            gigabytes: bytes / 1e9,
            gigabytes_per_s: bytes / 1e9 / seconds,
            dispatches: self.gpu.dispatch_count() - self.dispatches,
            memory_mib: self.gpu.memory().allocated as f64 / MIB,
        }
    }
}

async fn measure(
    variant: &Variant,
    plan: &Plan,
    precision: Precision,
    arguments: &BenchArgs,
) -> Result<Report, Failure> {
    let gpu = kept::open(&arguments.device.options()).await?;
    plan.check(&gpu, prefill_length(arguments) as usize + arguments.decode as usize)?;
    let started = Instant::now();
    let bar = progress::bytes(plan.weights(), "filling");
    let counter = bar.clone();
    let on_progress: OnProgress = Rc::new(move |bytes| {
        counter.inc(bytes);
        true
    });
    let loader = Loader::random(&gpu, SEED, vision_precision(precision), Some(on_progress));
    let sizes = &variant.vision;
    let hidden = variant.language.hidden_size;
    let vision = Vision::random(&loader, sizes.config.clone(), &sizes.clip, &sizes.convnext, hidden).await?;
    let language = Language::from_loader(&loader.at(precision), &variant.language).await?;
    gpu.flush_writes().await?;
    bar.finish_and_clear();
    if arguments.tune {
        tune_products(&gpu, &language).await?;
    }
    let load_ms = started.elapsed().as_secs_f64() * 1000.0;
    gpu.take_profile().await?;

    let mut parts = Vec::new();
    note!("mgm: looking …");
    let side = 640;
    let pixels = (0..side * side * 3).map(|index| (index * 31 % 251) as u8).collect();
    let views = vision.preprocess().views(&Rgb8::new(side, side, pixels)?)?;
    let meter = Meter::start(&gpu);
    let mut recorder = gpu.record();
    let tokens = vision.encode(&mut recorder, &views, None, &mut |_, _| true).await?.tokens;
    drop(recorder);
    parts.push(meter.stop("vision", tokens.rows()));
    gpu.trim();

    note!("mgm: prefilling …");
    let prefill = prefill_length(arguments) as usize;
    let visual = tokens.rows().min(prefill.saturating_sub(1));
    let positions: Vec<Position> = (0..prefill)
        .map(|index| match index.checked_sub(prefill - visual) {
            Some(row) => Position::Visual { image: 0, row: row as u32 },
            None => Position::Text((index * 7919 % variant.language.vocab_size) as u32),
        })
        .collect();
    let meter = Meter::start(&gpu);
    let mut cache = language.cache();
    let steps = arguments.decode as usize;
    let end = self::prefill(&gpu, &language, &positions, std::slice::from_ref(&tokens), &mut cache, steps)?;
    let mut generator = Generator::new(&language, &gpu, &mut cache, end, steps, Sampling::GREEDY, || 0.0)?;
    // The first token, so that the time is the prompt's alone.
    generator.next().await?;
    parts.push(meter.stop("prefill", prefill));

    note!("mgm: decoding …");
    let meter = Meter::start(&gpu);
    while generator.next().await?.is_some() {}
    parts.push(meter.stop("decode", steps.saturating_sub(1)));
    if arguments.device.profile {
        note!("{}", gpu.take_profile().await?);
    }
    Ok(Report {
        model: variant.name,
        precision: precision.to_string(),
        adapter: gpu.adapter().name.clone(),
        load_ms,
        peak_memory_mib: gpu.memory().peak as f64 / MIB,
        parts,
    })
}

/// Has a model's products computed by the fastest kernels, for this run.
pub(crate) async fn tune_products(gpu: &Gpu, language: &Language) -> mgm::Result<()> {
    note!("mgm: measuring kernels …");
    tune(gpu, products(&language.dry_run(gpu)?), TuneOptions::default(), |_| ControlFlow::Continue(())).await?;
    Ok(())
}

/// Runs a prompt through the model, with room for `steps` tokens behind it; gives the residual stream of its end.
pub(crate) fn prefill(
    gpu: &Gpu,
    language: &Language,
    positions: &[Position],
    images: &[Tensor],
    cache: &mut Cache,
    steps: usize,
) -> mgm::Result<Tensor> {
    let mut end = None;
    for portion in positions.chunks(PREFILL_POSITIONS) {
        let mut recorder = gpu.record();
        cache.reserve(&mut recorder, positions.len() + steps)?;
        let x = language.embed(&mut recorder, portion, images)?;
        end = Some(language.forward(&mut recorder, &x, cache)?);
        recorder.submit()?;
    }
    end.ok_or_else(|| mgm::Error::InvalidArgument("the prompt is empty".to_owned()))
}
