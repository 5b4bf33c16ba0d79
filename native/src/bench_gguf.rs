//! `mgm bench --gguf`: how fast a real file is read, prefills and decodes, warm.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use mgm::gpu::Gpu;
use mgm::language::{Generator, Language, Position};
use mgm::load::Loader;
use mgm::ops::{self, Sampling};
use mgm::tensor::Precision;
use mgm::text::tokenizer::Tokenizer;
use serde::Serialize;

use crate::args::{BenchArgs, open_gguf};
use crate::{Failure, bench, kept};

/// Positions of the prompt, without another number.
const PREFILL: u32 = 128;

#[derive(Debug, Serialize)]
struct Report {
    model: String,
    adapter: String,
    prefill_tokens: usize,
    decode_tokens: usize,
    prefill_tokens_per_s: f64,
    decode_tokens_per_s: f64,
    load_ms: f64,
    weights_mib: f64,
    /// What loading, the tokenizer's too, added to this process's memory at most, without the weights themselves, which a software
    /// adapter has there too.
    load_host_mib: Option<f64>,
    peak_memory_mib: f64,
    dispatches_per_token: f64,
    /// Products whose kernels were chosen by `mgm tune`.
    tuned: usize,
    /// Milliseconds between the answers to one step and the next, step by step.
    step_ms: Vec<f64>,
}

const MIB: f64 = 1024.0 * 1024.0;

/// A line of what the system says about this process's memory, in bytes, where it says anything: `VmRSS` now, `VmHWM` at most.
fn memory_of(line: &str) -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let value = status.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':'))?;
    value.trim().strip_suffix(" kB")?.parse::<f64>().ok().map(|kib| kib * 1024.0)
}

pub async fn run(path: &Path, arguments: &BenchArgs) -> Result<(), Failure> {
    let gpu = kept::open(&arguments.device.options()).await?;
    let before = memory_of("VmRSS");
    let started = Instant::now();
    let model = open_gguf(path).await?;
    // As for a conversation: it is there while the weights come, and counts.
    let tokenizer = Tokenizer::from_gguf(&model.header)?;
    let precision = arguments.precision.unwrap_or(Precision::F16);
    let mut loader = Loader::new(&gpu, model.weights.clone(), precision, None);
    if arguments.precision.is_none() {
        loader = loader.keeping_stored();
    }
    let language = Language::from_loader(&loader, &model.config).await?;
    gpu.flush_writes().await?;
    let load_ms = started.elapsed().as_secs_f64() * 1000.0;
    let weights = gpu.memory().allocated;
    // The memory of a software adapter is the process's own.
    let weights_of_process = if gpu.adapter().is_software() { weights as f64 } else { 0.0 };
    let load_host_mib = memory_of("VmHWM").zip(before).map(|(peak, before)| (peak - before - weights_of_process) / MIB);
    drop(tokenizer);
    if arguments.tune {
        bench::tune_products(&gpu, &language).await?;
    }
    // With the kernels that are in use now.
    let listing = language.dry_run(&gpu)?;
    kept::prepare(&gpu, &listing.kernels);
    gpu.trim();

    let (prefill, decode) = (arguments.prefill.unwrap_or(PREFILL) as usize, arguments.decode as usize);
    if prefill + decode > model.config.max_positions {
        return Err(mgm::Error::PromptTooLong { tokens: prefill + decode, limit: model.config.max_positions }.into());
    }
    let vocabulary = model.config.vocab_size as u32;
    let positions: Vec<Position> =
        (0..prefill as u32).map(|index| Position::Text(index.wrapping_mul(7919) % vocabulary)).collect();
    // The first run makes pipelines.
    run_once(&gpu, &language, &positions, decode.min(4)).await?;
    gpu.take_profile().await?;
    let mut times = Vec::new();
    for _ in 0..arguments.runs {
        times.push(run_once(&gpu, &language, &positions, decode).await?);
    }
    if arguments.device.profile {
        note!("{}", gpu.take_profile().await?);
    }
    let median = |part: fn(&Times) -> f64| {
        let mut values: Vec<f64> = times.iter().map(part).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let report = Report {
        model: path.display().to_string(),
        adapter: gpu.adapter().name.clone(),
        prefill_tokens: prefill,
        decode_tokens: decode,
        prefill_tokens_per_s: prefill as f64 / median(|times| times.prefill_s),
        decode_tokens_per_s: decode.saturating_sub(1) as f64 / median(|times| times.decode_s),
        load_ms,
        weights_mib: weights as f64 / MIB,
        load_host_mib,
        peak_memory_mib: gpu.memory().peak as f64 / MIB,
        dispatches_per_token: median(|times| times.dispatches),
        tuned: ops::tuning(&gpu).count(ops::products(&listing)),
        step_ms: fastest_steps(&times),
    };
    let mut out = std::io::stdout().lock();
    if arguments.json {
        writeln!(out, "{}", serde_json::to_string(&report).map_err(std::io::Error::other)?)?;
    } else {
        writeln!(out, "{} on {}", report.model, report.adapter)?;
        writeln!(out, "load     {:>10.0} ms, {:.1} MiB", report.load_ms, report.weights_mib)?;
        writeln!(out, "prefill  {:>10.2} tokens/s ({prefill} tokens)", report.prefill_tokens_per_s)?;
        writeln!(out, "decode   {:>10.2} tokens/s ({decode} tokens)", report.decode_tokens_per_s)?;
        writeln!(
            out,
            "{:.0} dispatches a token; {:.1} MiB at most",
            report.dispatches_per_token, report.peak_memory_mib
        )?;
    }
    Ok(())
}

struct Times {
    prefill_s: f64,
    decode_s: f64,
    dispatches: f64,
    step_ms: Vec<f64>,
}

/// Step by step the shortest time of all runs: what others do on the machine only ever adds.
fn fastest_steps(times: &[Times]) -> Vec<f64> {
    let steps = times.iter().map(|times| times.step_ms.len()).min().unwrap_or(0);
    (0..steps).map(|step| times.iter().map(|times| times.step_ms[step]).fold(f64::INFINITY, f64::min)).collect()
}

/// Prefills, up to the first token; then the other tokens.
async fn run_once(gpu: &Gpu, language: &Language, positions: &[Position], decode: usize) -> mgm::Result<Times> {
    let mut cache = language.cache();
    let mut recorder = gpu.record();
    cache.reserve(&mut recorder, positions.len() + decode)?;
    recorder.submit()?;
    let started = Instant::now();
    let end = bench::prefill(gpu, language, positions, &[], &mut cache, decode)?;
    // One token, so that the time is the prompt's alone.
    let mut first = Generator::new(language, gpu, &mut cache, end.clone(), 1, Sampling::GREEDY, || 0.0)?;
    first.next().await?;
    drop(first);
    let prefill_s = started.elapsed().as_secs_f64();

    let mut generator = Generator::new(language, gpu, &mut cache, end, decode, Sampling::GREEDY, || 0.0)?;
    let started = Instant::now();
    let before = gpu.dispatch_count();
    let mut step_ms = Vec::with_capacity(decode);
    let mut last = started;
    while generator.next().await?.is_some() {
        let now = Instant::now();
        step_ms.push((now - last).as_secs_f64() * 1000.0);
        last = now;
    }
    let decode_s = started.elapsed().as_secs_f64();
    let steps = decode.saturating_sub(1).max(1) as f64;
    Ok(Times { prefill_s, decode_s, dispatches: (gpu.dispatch_count() - before) as f64 / steps, step_ms })
}
