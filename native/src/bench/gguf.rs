//! `mgm bench --gguf`: load time, and prefill and decode speed of a GGUF file after a warm-up run.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use mgm::gpu::Gpu;
use mgm::language::{LanguageModel, Position, TokenGenerator};
use mgm::loader::Loader;
use mgm::ops::{self, Sampling};
use mgm::tensor::Precision;
use mgm::text::tokenizer::Tokenizer;
use mgm::weights::gguf_model::GgufModel;
use serde::Serialize;

use super::report::MIB;
use super::{BenchArgs, llm};
use crate::load::open_gguf;
use crate::output::print_json;
use crate::{CliError, device_cache};

/// Prompt length where none is given, in tokens.
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
    /// Peak host memory that loading (the tokenizer included) added. The weights themselves are subtracted on a
    /// software adapter, whose memory is the host's.
    load_host_mib: Option<f64>,
    peak_memory_mib: f64,
    dispatches_per_token: f64,
    /// Time to record and submit a token.
    host_ms_per_token: f64,
    /// Number of matmul shapes whose kernel `mgm tune` chose.
    tuned: usize,
    /// Milliseconds of each decode step.
    step_ms: Vec<f64>,
}

/// A memory figure of this process in bytes, where the system reports one: `VmRSS` (current) or `VmHWM` (peak).
fn process_memory(field: &str) -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    value.trim().strip_suffix(" kB")?.parse::<f64>().ok().map(|kib| kib * 1024.0)
}

/// Loads a model at a precision, or in the file's own formats.
pub(super) async fn load(gpu: &Gpu, model: &GgufModel, precision: Option<Precision>) -> mgm::Result<LanguageModel> {
    let mut loader = Loader::new(gpu, model.weights.clone(), precision.unwrap_or(Precision::F16), None);
    if precision.is_none() {
        loader = loader.keep_quantization();
    }
    let language = LanguageModel::load(&loader, &model.config).await?;
    gpu.flush_writes().await?;
    Ok(language)
}

pub async fn run(path: &Path, arguments: &BenchArgs) -> Result<(), CliError> {
    let gpu = device_cache::open(&arguments.device.options()).await?;
    mgm::tuning::check_rounding_kernels(&gpu).await?;
    let before = process_memory("VmRSS");
    let started = Instant::now();
    let model = open_gguf(path).await?;
    // A conversation holds the tokenizer while the weights load, so it counts.
    let tokenizer = Tokenizer::from_gguf(&model.header)?;
    let language = load(&gpu, &model, arguments.precision).await?;
    let load_ms = started.elapsed().as_secs_f64() * 1000.0;
    let weights = gpu.memory().allocated;
    let weights_on_host = if gpu.adapter().is_software() { weights as f64 } else { 0.0 };
    let load_host_mib =
        process_memory("VmHWM").zip(before).map(|(peak, before)| (peak - before - weights_on_host) / MIB);
    drop(tokenizer);
    if arguments.tune {
        llm::tune_matmuls(&gpu, &language).await?;
    }
    // After tuning, so that the pipelines are those of the chosen kernels.
    let report = language.dry_run(&gpu.plan())?;
    device_cache::Preparation::start(&gpu, report.kernels().into_keys()).finish();
    let tuned = ops::tuning(&gpu).count(ops::products(&report).into_keys());
    gpu.trim();

    let (prefill, decode) = (arguments.prefill.unwrap_or(PREFILL) as usize, arguments.decode as usize);
    if prefill + decode > model.config.max_positions {
        return Err(mgm::Error::PromptTooLong { tokens: prefill + decode, limit: model.config.max_positions }.into());
    }
    let vocab_size = model.config.vocab_size;
    let positions: Vec<Position> = (0..prefill).map(|index| Position::Text(llm::token_id(index, vocab_size))).collect();
    // The first run creates pipelines.
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
        host_ms_per_token: median(|times| times.host_ms),
        tuned,
        step_ms: fastest_steps(&times),
    };
    if arguments.json {
        return print_json(&report);
    }
    let mut out = std::io::stdout().lock();
    let (dispatches, host_ms, peak) = (report.dispatches_per_token, report.host_ms_per_token, report.peak_memory_mib);
    writeln!(out, "{} on {}", report.model, report.adapter)?;
    writeln!(out, "load     {:>10.0} ms, {:.1} MiB", report.load_ms, report.weights_mib)?;
    writeln!(out, "prefill  {:>10.2} tokens/s ({prefill} tokens)", report.prefill_tokens_per_s)?;
    writeln!(out, "decode   {:>10.2} tokens/s ({decode} tokens)", report.decode_tokens_per_s)?;
    writeln!(
        out,
        "{dispatches:.0} dispatches and {host_ms:.3} ms of recording and submitting per token, peak memory {peak:.1} MiB"
    )?;
    Ok(())
}

struct Times {
    prefill_s: f64,
    decode_s: f64,
    dispatches: f64,
    host_ms: f64,
    step_ms: Vec<f64>,
}

/// The shortest time of each step over all runs: other load on the machine can only add time.
fn fastest_steps(times: &[Times]) -> Vec<f64> {
    let steps = times.iter().map(|times| times.step_ms.len()).min().unwrap_or(0);
    (0..steps).map(|step| times.iter().map(|times| times.step_ms[step]).fold(f64::INFINITY, f64::min)).collect()
}

/// Prefills up to the first token, then decodes the other tokens.
async fn run_once(gpu: &Gpu, language: &LanguageModel, positions: &[Position], decode: usize) -> mgm::Result<Times> {
    let mut cache = language.cache();
    let mut recorder = gpu.record();
    cache.reserve(&mut recorder, positions.len() + decode)?;
    recorder.submit()?;
    let started = Instant::now();
    let end = llm::prefill(gpu, language, positions, &[], &mut cache, decode)?;
    // Prefill ends with the first token.
    let mut first = TokenGenerator::new(language, gpu, &mut cache, end.clone(), 1, Sampling::GREEDY, || 0.0)?;
    first.next().await?;
    drop(first);
    let prefill_s = started.elapsed().as_secs_f64();

    let mut generator = TokenGenerator::new(language, gpu, &mut cache, end, decode, Sampling::GREEDY, || 0.0)?;
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
    let host_ms = generator.host_time().as_secs_f64() * 1000.0 / decode.max(1) as f64;
    Ok(Times { prefill_s, decode_s, dispatches: (gpu.dispatch_count() - before) as f64 / steps, host_ms, step_ms })
}
