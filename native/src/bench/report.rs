//! What a bench measures and prints.

use std::io::Write;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::time::Instant;

use indicatif::ProgressBar;
use mgm::gpu::{Cost, Gpu};
use mgm::loader::OnProgress;
use mgm::memory_plan::MemoryPlan;
use mgm::tensor::Precision;
use serde::Serialize;

use crate::output::print_json;
use crate::{CliError, progress};

pub const MIB: f64 = 1024.0 * 1024.0;

/// Seed of the random weights.
pub const SEED: u32 = 2024;

/// The cost of one part of a run.
#[derive(Debug, Serialize)]
pub struct PartReport {
    name: &'static str,
    milliseconds: f64,
    tokens: usize,
    tokens_per_s: f64,
    gflop: f64,
    gflop_per_s: f64,
    gigabytes: f64,
    gigabytes_per_s: f64,
    dispatches: u64,
    /// Device memory in use when the part ends, in MiB.
    memory_mib: f64,
    /// Of decoding: the time to record and submit a token, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    host_ms_per_token: Option<f64>,
}

impl PartReport {
    pub fn with_host_ms_per_token(self, milliseconds: f64) -> Self {
        Self { host_ms_per_token: Some(milliseconds), ..self }
    }
}

/// The pipelines of a run.
#[derive(Debug, Serialize)]
pub struct Compiled {
    pub pipelines: usize,
    pub milliseconds: f64,
}

/// A run with random weights.
#[derive(Debug, Serialize)]
pub struct Report {
    pub model: &'static str,
    pub precision: String,
    pub adapter: String,
    pub load_ms: f64,
    /// Creating the pipelines on all cores, where that is measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compile: Option<Compiled>,
    pub peak_memory_mib: f64,
    pub parts: Vec<PartReport>,
}

impl Report {
    pub fn print(&self, json: bool) -> Result<(), CliError> {
        if json {
            return print_json(self);
        }
        let mut out = std::io::stdout().lock();
        let (seconds, peak) = (self.load_ms / 1000.0, self.peak_memory_mib);
        writeln!(
            out,
            "{} at {} on {}: random weights generated in {seconds:.1} s, peak memory {peak:.0} MiB",
            self.model, self.precision, self.adapter
        )?;
        writeln!(
            out,
            "{:<8} {:>10} {:>7} {:>10} {:>10} {:>10} {:>9} {:>8} {:>10} {:>10}",
            "part", "ms", "tokens", "tokens/s", "GFLOP", "GFLOP/s", "GB", "GB/s", "dispatches", "MiB"
        )?;
        for part in &self.parts {
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
        if let Some(Compiled { pipelines, milliseconds }) = self.compile {
            writeln!(out, "{pipelines} pipelines, created in {milliseconds:.0} ms")?;
        }
        if let Some(host_ms) = self.parts.iter().find_map(|part| part.host_ms_per_token) {
            writeln!(out, "decode: recording and submitting takes {host_ms:.3} ms a token on the host")?;
        }
        Ok(())
    }
}

/// The memory that a run would allocate.
#[derive(Debug, Serialize)]
struct DryRunReport {
    model: &'static str,
    precision: String,
    parts: Vec<PartBytes>,
    weight_bytes: u64,
    /// Prompt and answer.
    positions: usize,
    cache_bytes: u64,
}

#[derive(Debug, Serialize)]
struct PartBytes {
    name: &'static str,
    bytes: u64,
}

/// Prints the memory that a run would allocate: weights, and a KV cache of `positions`.
pub fn dry_run(
    model: &'static str,
    plan: &MemoryPlan,
    precision: Precision,
    positions: usize,
    json: bool,
) -> Result<(), CliError> {
    let cache_bytes = plan.cache_per_position * positions as u64;
    if json {
        let parts: Vec<_> = plan.parts.iter().map(|(name, bytes)| PartBytes { name, bytes: *bytes }).collect();
        let (weight_bytes, precision) = (plan.weights(), precision.to_string());
        return print_json(&DryRunReport { model, precision, parts, weight_bytes, positions, cache_bytes });
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "{model} at {precision}: GPU memory needed, in MiB")?;
    for (name, bytes) in &plan.parts {
        writeln!(out, "{name:<32} {:>10.1}", *bytes as f64 / MIB)?;
    }
    writeln!(out, "{:<32} {:>10.1}", "all weights", plan.weights() as f64 / MIB)?;
    if positions > 0 {
        let title = format!("KV cache, {positions} tokens");
        writeln!(out, "{title:<32} {:>10.1}", cache_bytes as f64 / MIB)?;
    }
    Ok(())
}

/// A progress bar for random weights, and the callback that advances it.
pub fn fill_progress(plan: &MemoryPlan) -> (ProgressBar, OnProgress) {
    let bar = progress::bytes(plan.weights(), "generating weights");
    let counter = bar.clone();
    let on_progress: OnProgress = Rc::new(move |bytes| {
        counter.inc(bytes);
        ControlFlow::Continue(())
    });
    (bar, on_progress)
}

/// Measures device work from the start of its recording to its end.
pub struct Meter<'a> {
    gpu: &'a Gpu,
    started: Instant,
    dispatches: u64,
}

impl<'a> Meter<'a> {
    pub fn start(gpu: &'a Gpu) -> Self {
        gpu.take_cost();
        Self { gpu, started: Instant::now(), dispatches: gpu.dispatch_count() }
    }

    pub fn stop(self, name: &'static str, tokens: usize) -> PartReport {
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
            host_ms_per_token: None,
        }
    }
}
