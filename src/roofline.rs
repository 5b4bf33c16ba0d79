//! Times of the kernels at shapes of the released models, relative to the adapter's limits.

use std::ops::ControlFlow;
use std::time::Duration;

use serde::Serialize;
use web_time::Instant;

use crate::Result;
use crate::gpu::{Cost, Gpu, Recorder};
use crate::ops::{
    self, Attention, ConvEpilogue, ConvMode, Convolution, Epilogue, FeatureMap, GroupNorm, KeyValues, KvCache,
    MatmulShape, MiningMap, Norm, Scores, roofline,
};
use crate::tensor::{Matrix, Precision, Tensor};
use crate::tuning::{self, TuneOptions, tune, uncached_weights};

/// How a kernel is timed: until the first of both limits is reached.
struct Effort {
    time: Duration,
    runs: usize,
    /// Target duration of a submission.
    submission: Duration,
}

/// A GPU is measured alone, so that a few runs are enough; the processor that a software adapter runs on is not.
const ON_HARDWARE: Effort = Effort { time: Duration::from_millis(300), runs: 7, submission: Duration::from_millis(20) };
const IN_SOFTWARE: Effort = Effort { time: Duration::from_secs(2), runs: 20, submission: Duration::from_millis(50) };
/// Dispatches of a submission, at most.
const MOST_REPEATS: usize = 4096;
/// Bytes read to measure the bandwidth: more than the caches of hardware.
const READ_BYTES: u64 = 256 << 20;
/// Less than a binding of any device, and more than the caches of a core.
const READ_BYTES_IN_SOFTWARE: u64 = 64 << 20;

/// The limits of an adapter.
#[derive(Debug, Clone, Serialize)]
pub struct Limits {
    /// The adapter's name.
    pub adapter: String,
    /// Whether it is a software adapter.
    pub software: bool,
    /// Bandwidth of plain reads.
    pub read_gigabytes_per_s: f64,
    /// Rate of multiply-adds in registers, two operations each.
    pub fma_gflop_per_s: f64,
}

/// A kernel's work and time, and the least time that this work takes on the adapter.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What was timed.
    pub kernel: String,
    /// What it must read and write.
    pub megabytes: f64,
    /// Its arithmetic; a multiply-add counts as two.
    pub megaflop: f64,
    /// Median.
    pub milliseconds: f64,
    /// The fastest run.
    pub least_milliseconds: f64,
}

impl Row {
    /// Rate of its arithmetic.
    pub fn gflop_per_s(&self) -> f64 {
        self.megaflop / self.milliseconds
    }

    /// Rate of what it reads and writes.
    pub fn gigabytes_per_s(&self) -> f64 {
        self.megabytes / self.milliseconds
    }
}

impl Limits {
    /// Milliseconds that a kernel takes at least: its bytes at the adapter's bandwidth, or its operations at the
    /// adapter's rate.
    pub fn floor(&self, row: &Row) -> f64 {
        (row.megabytes / self.read_gigabytes_per_s).max(row.megaflop / self.fma_gflop_per_s)
    }

    /// The fraction of its floor that a kernel reaches, from the fastest runs, since other programs may use the device
    /// too.
    pub fn part(&self, row: &Row) -> f64 {
        self.floor(row) / row.least_milliseconds
    }
}

/// Measures the adapter itself: the fastest runs.
///
/// # Errors
/// [Device errors](crate::gpu).
pub async fn limits(gpu: &Gpu) -> Result<Limits> {
    let most = if gpu.adapter().is_software() { READ_BYTES_IN_SOFTWARE } else { READ_BYTES };
    let bytes = most.min(gpu.capabilities().max_shard_bytes());
    let source = Tensor::zeros(gpu, &[bytes as usize / 4], "source")?;
    let read = time(gpu, |recorder| roofline::read_all(recorder, &source)).await?;
    drop(source);
    let fma = time(gpu, |recorder| roofline::multiply_add(recorder, 1024)).await?;
    Ok(Limits {
        adapter: gpu.adapter().name.clone(),
        software: gpu.adapter().is_software(),
        read_gigabytes_per_s: read.cost.bytes / read.fastest / 1e9,
        fma_gflop_per_s: fma.cost.flops / fma.fastest / 1e9,
    })
}

/// Measures kernels, those with `filter` in their names if it is given; rows go to `on_row` as they come. Products are
/// computed by the kernels in use, or, with `tune`, by the fastest ([`tune`]).
///
/// # Errors
/// [Device errors](crate::gpu).
pub async fn measure(gpu: Gpu, filter: Option<String>, tune: bool, on_row: impl FnMut(&Row)) -> Result<()> {
    tuning::check_rounding_kernels(&gpu).await?;
    Bench { gpu, filter, tune, on_row }.all().await
}

struct Bench<F> {
    gpu: Gpu,
    filter: Option<String>,
    tune: bool,
    on_row: F,
}

impl<F: FnMut(&Row)> Bench<F> {
    async fn all(mut self) -> Result<()> {
        for precision in Precision::CHOICES {
            for (m, n, k) in [
                (1, 2048, 2048),
                (1, 4096, 4096),
                (1, 32768, 2048),
                (128, 1024, 1024),
                (128, 2048, 2048),
                (577, 1024, 1024),
                (512, 4096, 1024),
            ] {
                self.linear(m, n, k, precision).await?;
            }
        }
        // A token through LLaMA 7B.
        for (n, k) in [(12288, 4096), (22016, 4096), (4096, 11008)] {
            self.linear(1, n, k, Precision::Q4).await?;
        }
        self.linear(1, 32000, 4096, Precision::Q8).await?;
        // A token of each of several conversations.
        for m in [2, 4, 8, 16] {
            for (n, k) in [(4096, 4096), (22016, 4096)] {
                self.linear(m, n, k, Precision::Q4).await?;
            }
        }
        // SmolLM2-135M.
        for (n, k) in [(960, 576), (576, 576), (3072, 576), (576, 1536)] {
            self.linear(1, n, k, Precision::Q4).await?;
            self.linear(128, n, k, Precision::Q4).await?;
        }
        self.linear(1, 49152, 576, Precision::Q8).await?;
        self.attention("attention CLIP 577 x 16 x 64", 577, 577, (16, 16, 64), false).await?;
        self.attention("attention prefill 512 x 8/1 x 256", 512, 512, (8, 1, 256), true).await?;
        self.attention("attention decode 1024 x 32 x 128", 1, 1024, (32, 32, 128), true).await?;
        self.norm("norm 577 x 1024", 577, 1024).await?;
        self.depthwise("depthwise 7x7 192 x 64 x 64", 192, 64).await?;
        self.mining("mining, released sizes").await?;
        // Stable Diffusion XL's UNet at 512 x 512: the convolutions and norms of its three levels, its attention. In
        // f32 at a quarter of that, for those who want to compare on slow adapters.
        for (channels, side) in [(320, 32), (1280, 8)] {
            self.convolution(channels, side, Precision::F32).await?;
        }
        for precision in [Precision::F16, Precision::Q8] {
            for (channels, side) in [(320, 64), (640, 32), (1280, 16)] {
                self.convolution(channels, side, precision).await?;
            }
        }
        self.group_norm("group norm and SiLU 320 x 64 x 64", 320, 64).await?;
        self.attention_to("attention UNet 1024 x 10 x 64", 1024, 1024, (10, 64)).await?;
        self.attention_to("attention UNet to words 1024 to 77 x 10 x 64", 1024, 77, (10, 64)).await?;
        Ok(())
    }

    fn wants(&self, name: &str) -> bool {
        self.filter.as_ref().is_none_or(|filter| name.contains(filter.as_str()))
    }

    async fn run(&mut self, name: &str, record: impl FnMut(&mut Recorder) -> Result<Tensor>) -> Result<()> {
        if self.wants(name) {
            let Timed { cost, fastest, median } = time(&self.gpu, record).await?;
            (self.on_row)(&Row {
                kernel: name.to_owned(),
                megabytes: cost.bytes / 1e6,
                megaflop: cost.flops / 1e6,
                milliseconds: median * 1e3,
                least_milliseconds: fastest * 1e3,
            });
        }
        Ok(())
    }

    async fn linear(&mut self, m: usize, n: usize, k: usize, precision: Precision) -> Result<()> {
        let name = format!("linear {precision} {m} x {n} x {k}");
        if !self.wants(&name) {
            return Ok(());
        }
        let shape = MatmulShape { precision, m, n, k };
        if self.tune {
            tune(&self.gpu, [shape], TuneOptions::default(), |_| ControlFlow::Continue(())).await?;
        }
        let weights = uncached_weights(&self.gpu, shape)?;
        let x = Tensor::zeros(&self.gpu, &[m, k], "x")?;
        let mut rotation = weights.iter().cycle();
        self.run(&name, |recorder| match rotation.next() {
            Some(weight) => ops::linear(recorder, &x, weight, Epilogue::default()),
            None => Ok(x.clone()),
        })
        .await
    }

    async fn attention(
        &mut self,
        name: &str,
        times: usize,
        keys: usize,
        (heads, kv_heads, head_dim): (usize, usize, usize),
        causal: bool,
    ) -> Result<()> {
        let scores = Scores::default();
        let layer = Attention { heads, kv_heads, head_dim, causal, exact: false, scores };
        let cache = KvCache::new(&self.gpu, keys, kv_heads * head_dim, true)?;
        let queries = Tensor::zeros(&self.gpu, &[times, heads * head_dim], "queries")?;
        self.run(name, |recorder| {
            ops::attention(recorder, layer, &queries, KeyValues::Cached { cache: &cache, length: keys })
        })
        .await
    }

    /// Attention to keys and values of another sequence, not causal.
    async fn attention_to(
        &mut self,
        name: &str,
        times: usize,
        keys: usize,
        (heads, head_dim): (usize, usize),
    ) -> Result<()> {
        let scores = Scores::default();
        let layer = Attention { heads, kv_heads: heads, head_dim, causal: false, exact: false, scores };
        let queries = Tensor::zeros(&self.gpu, &[times, heads * head_dim], "queries")?;
        let others = Tensor::zeros(&self.gpu, &[keys, 2 * heads * head_dim], "keys and values")?;
        self.run(name, |recorder| ops::attention(recorder, layer, &queries, KeyValues::Separate(&others))).await
    }

    /// A 3 x 3 convolution with the same channels and size before and after.
    async fn convolution(&mut self, channels: usize, side: usize, precision: Precision) -> Result<()> {
        let name = format!("convolution {precision} 3x3 {channels} x {side} x {side}");
        if !self.wants(&name) {
            return Ok(());
        }
        let layer = Convolution {
            weight: Matrix::random(&self.gpu, precision, channels, 9 * channels, 1, "weight")?,
            bias: Tensor::zeros(&self.gpu, &[channels], "bias")?,
            channels,
            side: 3,
            mode: ConvMode::Same,
        };
        let x = self.map(side, channels)?;
        self.run(&name, |recorder| Ok(ops::convolution(recorder, &x, &layer, ConvEpilogue::default())?.values)).await
    }

    async fn group_norm(&mut self, name: &str, channels: usize, side: usize) -> Result<()> {
        let x = self.map(side, channels)?;
        let weight = Tensor::zeros(&self.gpu, &[channels], "weight")?;
        let layer = GroupNorm { bias: weight.clone(), weight, groups: 32, eps: 1e-5, largest: [1.0; 2] };
        self.run(name, |recorder| Ok(ops::group_norm(recorder, &x, &layer, true)?.values)).await
    }

    async fn norm(&mut self, name: &str, rows: usize, width: usize) -> Result<()> {
        let x = Tensor::zeros(&self.gpu, &[rows, width], "x")?;
        let weight = Tensor::zeros(&self.gpu, &[width], "weight")?;
        let layer = Norm { bias: Some(weight.clone()), weight, eps: 1e-5, unit_offset: false };
        self.run(name, |recorder| ops::norm(recorder, &x, &layer)).await
    }

    async fn depthwise(&mut self, name: &str, channels: usize, side: usize) -> Result<()> {
        let x = self.map(side, channels)?;
        let weight = Tensor::zeros(&self.gpu, &[49, channels], "weight")?;
        let bias = Tensor::zeros(&self.gpu, &[channels], "bias")?;
        self.run(name, |recorder| Ok(ops::depthwise(recorder, &x, &weight, &bias)?.values)).await
    }

    async fn mining(&mut self, name: &str) -> Result<()> {
        let stages = [self.map(192, 192)?, self.map(96, 384)?, self.map(48, 768)?, self.map(24, 1536)?];
        let map = MiningMap { stages, pool: 1 };
        let u = Tensor::zeros(&self.gpu, &[576, map.channels()], "u")?;
        self.run(name, |recorder| {
            let statistics = ops::mining_stats(recorder, &map, 1e-5)?;
            ops::mining(recorder, &u, &map, &statistics, 8, (0, 0), None)
        })
        .await
    }

    fn map(&self, side: usize, channels: usize) -> Result<FeatureMap> {
        let pixels = Tensor::zeros(&self.gpu, &[side * side, channels], "map")?;
        Ok(FeatureMap { height: side, width: side, values: pixels })
    }
}

/// Seconds of a kernel, and what it costs.
struct Timed {
    cost: Cost,
    fastest: f64,
    median: f64,
}

async fn time(gpu: &Gpu, mut record: impl FnMut(&mut Recorder) -> Result<Tensor>) -> Result<Timed> {
    tuning::time(gpu, 1, &mut record).await?; // makes pipelines
    let effort = if gpu.is_software() { IN_SOFTWARE } else { ON_HARDWARE };
    let repeat = tuning::repeats(gpu, effort.submission, MOST_REPEATS, &mut record).await?;
    gpu.take_cost();
    let started = Instant::now();
    let mut times = Vec::new();
    while times.len() < 3 || (started.elapsed() < effort.time && times.len() < effort.runs) {
        times.push(tuning::time(gpu, repeat, &mut record).await?.as_secs_f64() / repeat as f64);
    }
    let Cost { bytes, flops } = gpu.take_cost();
    let runs = (times.len() * repeat) as f64;
    times.sort_by(f64::total_cmp);
    let cost = Cost { bytes: bytes / runs, flops: flops / runs };
    Ok(Timed { cost, fastest: times[0], median: times[times.len() / 2] })
}
