//! `GET /metrics`: counters, gauges and histograms in Prometheus' text format.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use mgm::engine::Figures;

use super::usage::{Timings, Usage};

/// Upper bounds of the histograms' buckets in seconds.
const BOUNDS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// What happened since the server's start.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Answered requests by endpoint and status.
    requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
    prompt_tokens: AtomicU64,
    cached_tokens: AtomicU64,
    generated_tokens: AtomicU64,
    /// Requests that were refused because too many waited.
    rejected: AtomicU64,
    /// Requests whose client went away.
    cancelled: AtomicU64,
    images: AtomicU64,
    device_lost: AtomicU64,
    queue: Histogram,
    first_token: Histogram,
    request: Histogram,
    figures: Mutex<Figures>,
}

impl Metrics {
    /// Notes the end of a request. `endpoint`: its path, if it is one of this server's.
    pub fn request(&self, endpoint: &'static str, status: u16, time: Duration) {
        *self.requests.lock().unwrap_or_else(PoisonError::into_inner).entry((endpoint, status)).or_default() += 1;
        self.request.add(time.as_secs_f64());
        if status == 429 {
            self.rejected.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Notes whole answers.
    pub fn answers(&self, usage: Usage, timings: Timings) {
        self.prompt_tokens.fetch_add(usage.prompt_tokens as u64, Ordering::Relaxed);
        self.cached_tokens.fetch_add(usage.prompt_tokens_details.cached_tokens as u64, Ordering::Relaxed);
        self.generated_tokens.fetch_add(usage.completion_tokens as u64, Ordering::Relaxed);
        self.queue.add(timings.queue_ms / 1000.0);
        self.first_token.add((timings.queue_ms + timings.prefill_ms) / 1000.0);
    }

    /// Notes a request that was cancelled.
    pub fn cancelled(&self) {
        self.cancelled.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes a lost device.
    pub fn device_lost(&self) {
        self.device_lost.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes a generated image.
    pub fn image(&self) {
        self.images.fetch_add(1, Ordering::Relaxed);
    }

    /// What the engine has done.
    pub fn set_figures(&self, figures: Figures) {
        *self.figures.lock().unwrap_or_else(PoisonError::into_inner) = figures;
    }

    pub fn write(&self, out: &mut Text) {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        out.kind("mgm_requests_total", "counter", "Answered requests.");
        for ((endpoint, status), count) in &*requests {
            out.value(&format!("mgm_requests_total{{endpoint=\"{endpoint}\",status=\"{status}\"}}"), *count);
        }
        drop(requests);
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let figures = *self.figures.lock().unwrap_or_else(PoisonError::into_inner);
        let mut counter = |name: &str, help: &str, value: u64| {
            out.kind(name, "counter", help);
            out.value(name, value);
        };
        counter("mgm_prompt_tokens_total", "Positions of prompts.", load(&self.prompt_tokens));
        counter("mgm_cached_tokens_total", "Positions of prompts that were cached.", load(&self.cached_tokens));
        counter("mgm_generated_tokens_total", "Generated tokens.", load(&self.generated_tokens));
        counter("mgm_cancelled_total", "Requests whose client went away.", load(&self.cancelled));
        counter("mgm_device_lost_total", "Devices that were lost.", load(&self.device_lost));
        counter("mgm_images_total", "Generated images.", load(&self.images));
        counter("mgm_encoded_images_total", "Images of messages that were encoded.", figures.images.encoded);
        counter("mgm_preempted_total", "Sequences that gave their memory up.", figures.preempted);
        counter("mgm_steps_total", "Decoding steps.", figures.steps);
        counter("mgm_rows_total", "Rows of decoding steps, without those of drafts.", figures.rows);
        counter("mgm_draft_tokens_total", "Tokens of prompt-lookup drafts.", figures.drafted);
        counter("mgm_accepted_draft_tokens_total", "Tokens of prompt-lookup drafts that were right.", figures.accepted);
        out.kind("mgm_rejected_total", "counter", "Requests that were refused.");
        out.value("mgm_rejected_total{reason=\"queue_full\"}", load(&self.rejected));
        let mut gauge = |name: &str, help: &str, value: usize| {
            out.kind(name, "gauge", help);
            out.value(name, value as u64);
        };
        gauge("mgm_queue", "Jobs that wait.", figures.waiting);
        gauge("mgm_running", "Sequences that are computed.", figures.running);
        out.kind("mgm_kv_blocks", "gauge", "Blocks of keys and values.");
        out.value("mgm_kv_blocks{state=\"used\"}", figures.blocks.saturating_sub(figures.available_blocks) as u64);
        out.value("mgm_kv_blocks{state=\"available\"}", figures.available_blocks as u64);
        self.queue.write(out, "mgm_queue_seconds", "From a request's arrival to the start of its prompt.");
        self.first_token.write(out, "mgm_first_token_seconds", "From a request's arrival to its first token.");
        self.request.write(out, "mgm_request_seconds", "From a request's arrival to the head of its answer.");
    }
}

/// Numbers of values up to each bound.
#[derive(Debug, Default)]
struct Histogram {
    buckets: [AtomicU64; BOUNDS.len()],
    count: AtomicU64,
    /// Of all values, in microseconds.
    sum: AtomicU64,
}

impl Histogram {
    fn add(&self, seconds: f64) {
        if let Some(bucket) = BOUNDS.iter().position(|bound| seconds <= *bound) {
            self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add((seconds * 1e6) as u64, Ordering::Relaxed);
    }

    fn write(&self, out: &mut Text, name: &str, help: &str) {
        out.kind(name, "histogram", help);
        let mut total = 0;
        for (bound, bucket) in BOUNDS.iter().zip(&self.buckets) {
            total += bucket.load(Ordering::Relaxed);
            out.value(&format!("{name}_bucket{{le=\"{bound}\"}}"), total);
        }
        let count = self.count.load(Ordering::Relaxed);
        out.value(&format!("{name}_bucket{{le=\"+Inf\"}}"), count);
        let sum = self.sum.load(Ordering::Relaxed) as f64 / 1e6;
        out.line(&format!("{name}_sum {sum}"));
        out.value(&format!("{name}_count"), count);
    }
}

/// The text of an answer.
#[derive(Default)]
pub struct Text(pub String);

impl Text {
    fn line(&mut self, line: &str) {
        self.0 += line;
        self.0.push('\n');
    }

    /// Begins a metric.
    pub fn kind(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a text cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    pub fn value(&mut self, name: &str, value: u64) {
        let _ = writeln!(self.0, "{name} {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prometheus' format: buckets count all values up to their bound.
    #[test]
    fn buckets_are_cumulative() {
        let histogram = Histogram::default();
        for seconds in [0.001, 0.02, 0.3, 1000.0] {
            histogram.add(seconds);
        }
        let mut out = Text::default();
        histogram.write(&mut out, "x", "y");
        for line in [
            "x_bucket{le=\"0.005\"} 1",
            "x_bucket{le=\"0.025\"} 2",
            "x_bucket{le=\"0.5\"} 3",
            "x_bucket{le=\"300\"} 3",
            "x_bucket{le=\"+Inf\"} 4",
            "x_sum 1000.321",
            "x_count 4",
        ] {
            assert!(out.0.lines().any(|found| found == line), "{line} in {}", out.0);
        }
    }
}
