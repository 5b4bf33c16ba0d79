//! Times of the kernels at shapes of the released models, beside what the adapter can do at best.

use std::time::Duration;

use serde::Serialize;
use web_time::Instant;

use crate::Result;
use crate::gpu::{Cost, Gpu, Recorder};
use crate::ops::{
    self, Attention, Convolution, Epilogue, FeatureMap, GroupNorm, KeyValues, KvCache, MapEpilogue, MiningMap, Norm,
    Sampling2d, roofline,
};
use crate::tensor::{Matrix, Precision, Tensor};

/// A kernel is timed this long or this often, whichever ends first.
const TIME: Duration = Duration::from_secs(2);
const RUNS: usize = 20;
/// A submission lasts about as long, if that takes no more than a hundred of the kernel.
const SUBMISSION: Duration = Duration::from_millis(50);
/// What is read to find the bandwidth: more than caches hold, and less than a binding.
const READ_WORDS: usize = 16 << 20;

/// A kernel's time, and the least time that its work takes on this adapter.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What was timed.
    pub kernel: String,
    /// Median, in milliseconds.
    pub milliseconds: f64,
    /// Rate of its arithmetic.
    pub gflop_per_s: f64,
    /// Rate of what it must read and write.
    pub gigabytes_per_s: f64,
    /// The longer of its bytes at the adapter's bandwidth and its operations at the adapter's rate, over its time.
    pub part_of_roofline: f64,
}

/// What the adapter can do, and the kernels.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The adapter's name.
    pub adapter: String,
    /// Bandwidth of plain reads.
    pub read_gigabytes_per_s: f64,
    /// Rate of multiply-adds in registers, two operations each.
    pub fma_gflop_per_s: f64,
    /// The kernels.
    pub rows: Vec<Row>,
}

/// Measures, and prints rows to `out` as they come. Only kernels with `filter` in their names, if it is given.
///
/// # Errors
/// Of the device, and of `out`.
pub async fn measure(gpu: Gpu, filter: Option<String>, mut out: impl FnMut(&str)) -> Result<Report> {
    let mut bench = Bench { gpu, filter: None, read: f64::INFINITY, fma: f64::INFINITY, rows: Vec::new() };
    let source = Tensor::zeros(&bench.gpu, &[READ_WORDS], "source")?;
    bench.run("read", |recorder| roofline::read_all(recorder, &source)).await?;
    drop(source);
    bench.run("multiply-add", |recorder| roofline::multiply_add(recorder, 1024)).await?;
    let [read, fma] = [0, 1].map(|index| bench.rows[index].clone());
    (bench.read, bench.fma) = (read.gigabytes_per_s, fma.gflop_per_s);
    bench.rows.clear();
    bench.filter = filter;
    let adapter = bench.gpu.adapter().name.clone();
    out(&format!("{adapter}: reads {:.2} GB/s, multiply-adds {:.2} GFLOP/s", bench.read, bench.fma));
    out(&format!("{:<44} {:>10} {:>10} {:>9} {:>9}", "kernel", "ms", "GFLOP/s", "GB/s", "roofline"));
    bench.all(&mut out).await?;
    Ok(Report { adapter, read_gigabytes_per_s: bench.read, fma_gflop_per_s: bench.fma, rows: bench.rows })
}

/// Only the kernels with `filter` in their names, beside nothing: for races against others.
///
/// # Errors
/// Of the device.
pub async fn times(gpu: Gpu, filter: String) -> Result<Vec<Row>> {
    let mut bench = Bench { gpu, filter: Some(filter), read: f64::INFINITY, fma: f64::INFINITY, rows: Vec::new() };
    bench.all(&mut |_| ()).await?;
    Ok(bench.rows)
}

struct Bench {
    gpu: Gpu,
    filter: Option<String>,
    read: f64,
    fma: f64,
    rows: Vec<Row>,
}

impl Bench {
    async fn all(&mut self, out: &mut impl FnMut(&str)) -> Result<()> {
        let mut shown = 0;
        let mut show = |bench: &Self| {
            for row in &bench.rows[shown..] {
                out(&format!(
                    "{:<44} {:>10.3} {:>10.2} {:>9.2} {:>8.0}%",
                    row.kernel,
                    row.milliseconds,
                    row.gflop_per_s,
                    row.gigabytes_per_s,
                    row.part_of_roofline * 100.0
                ));
            }
            shown = bench.rows.len();
        };
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
                show(self);
            }
        }
        // SmolLM2-135M.
        for (n, k) in [(960, 576), (576, 576), (3072, 576), (576, 1536)] {
            self.linear(1, n, k, Precision::Q4).await?;
            self.linear(128, n, k, Precision::Q4).await?;
            show(self);
        }
        self.linear(1, 49152, 576, Precision::Q8).await?;
        self.attention("attention CLIP 577 x 16 x 64", 577, 577, (16, 16, 64), false).await?;
        self.attention("attention prefill 512 x 8/1 x 256", 512, 512, (8, 1, 256), true).await?;
        self.attention("attention decode 1024 x 32 x 128", 1, 1024, (32, 32, 128), true).await?;
        show(self);
        self.norm("norm 577 x 1024", 577, 1024).await?;
        self.depthwise("depthwise 7x7 192 x 64 x 64", 192, 64).await?;
        self.mining("mining, released sizes").await?;
        show(self);
        // Stable Diffusion XL's UNet at 512 x 512: the convolutions and norms of its three levels, its attention. In f32 at a quarter
        // of that, for those who want to compare on slow adapters.
        for (channels, side) in [(320, 32), (1280, 8)] {
            self.convolution(channels, side, Precision::F32).await?;
        }
        for precision in [Precision::F16, Precision::Q8] {
            for (channels, side) in [(320, 64), (640, 32), (1280, 16)] {
                self.convolution(channels, side, precision).await?;
                show(self);
            }
        }
        self.group_norm("group norm and SiLU 320 x 64 x 64", 320, 64).await?;
        self.attention_to("attention UNet 1024 x 10 x 64", 1024, 1024, (10, 64)).await?;
        self.attention_to("attention UNet to words 1024 to 77 x 10 x 64", 1024, 77, (10, 64)).await?;
        show(self);
        Ok(())
    }

    fn wants(&self, name: &str) -> bool {
        self.filter.as_ref().is_none_or(|filter| name.contains(filter.as_str()))
    }

    async fn run(&mut self, name: &str, record: impl Fn(&mut Recorder) -> Result<Tensor>) -> Result<()> {
        if !self.wants(name) {
            return Ok(());
        }
        let gpu = self.gpu.clone();
        let once = async |repeat: usize| -> Result<Duration> {
            let mut recorder = gpu.record();
            let mut y = record(&mut recorder)?;
            for _ in 1..repeat {
                y = record(&mut recorder)?;
            }
            let read = y.reshape(&[y.len()]).slice_elements(0..1).read_back(&mut recorder);
            let started = Instant::now();
            recorder.submit()?;
            read.bytes().await?;
            Ok(started.elapsed())
        };
        once(1).await?; // makes pipelines
        // Short kernels share a submission, whose own cost is not theirs.
        let repeat = (SUBMISSION.as_secs_f64() / once(1).await?.as_secs_f64()).clamp(1.0, 100.0) as usize;
        self.gpu.take_cost();
        let started = Instant::now();
        let mut times = Vec::new();
        while times.len() < 3 || (started.elapsed() < TIME && times.len() < RUNS) {
            times.push(once(repeat).await?.as_secs_f64() / repeat as f64);
        }
        let cost = self.gpu.take_cost();
        let runs = (times.len() * repeat) as f64;
        times.sort_by(f64::total_cmp);
        let median = times[times.len() / 2];
        let Cost { bytes, flops } = Cost { bytes: cost.bytes / runs / 1e9, flops: cost.flops / runs / 1e9 };
        self.rows.push(Row {
            kernel: name.to_owned(),
            milliseconds: median * 1e3,
            gflop_per_s: flops / median,
            gigabytes_per_s: bytes / median,
            part_of_roofline: (bytes / self.read).max(flops / self.fma) / median,
        });
        Ok(())
    }

    async fn linear(&mut self, m: usize, n: usize, k: usize, precision: Precision) -> Result<()> {
        let name = format!("linear {precision} {m} x {n} x {k}");
        if !self.wants(&name) {
            return Ok(());
        }
        let weight = Matrix::random(&self.gpu, precision, n, k, 1, "weight")?;
        let x = Tensor::zeros(&self.gpu, &[m, k], "x")?;
        self.run(&name, |recorder| ops::linear(recorder, &x, &weight, Epilogue::default())).await
    }

    async fn attention(
        &mut self,
        name: &str,
        times: usize,
        keys: usize,
        (heads, kv_heads, head_dim): (usize, usize, usize),
        causal: bool,
    ) -> Result<()> {
        let layer = Attention { heads, kv_heads, head_dim, causal };
        let cache = KvCache::new(&self.gpu, keys, kv_heads * head_dim, true)?;
        let queries = Tensor::zeros(&self.gpu, &[times, heads * head_dim], "queries")?;
        self.run(name, |recorder| ops::attention(recorder, layer, &queries, KeyValues::Cached(&cache, keys))).await
    }

    /// Attention to keys and values beside the queries' own, not causal.
    async fn attention_to(
        &mut self,
        name: &str,
        times: usize,
        keys: usize,
        (heads, head_dim): (usize, usize),
    ) -> Result<()> {
        let layer = Attention { heads, kv_heads: heads, head_dim, causal: false };
        let queries = Tensor::zeros(&self.gpu, &[times, heads * head_dim], "queries")?;
        let others = Tensor::zeros(&self.gpu, &[keys, 2 * heads * head_dim], "keys and values")?;
        self.run(name, |recorder| ops::attention(recorder, layer, &queries, KeyValues::Other(&others))).await
    }

    /// A convolution 3 x 3 that keeps channels and size.
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
            sampling: Sampling2d::Same,
        };
        let x = self.map(side, channels)?;
        self.run(&name, |recorder| Ok(ops::convolution(recorder, &x, &layer, MapEpilogue::default())?.pixels)).await
    }

    async fn group_norm(&mut self, name: &str, channels: usize, side: usize) -> Result<()> {
        let x = self.map(side, channels)?;
        let weight = Tensor::zeros(&self.gpu, &[channels], "weight")?;
        let layer = GroupNorm { bias: weight.clone(), weight, groups: 32, eps: 1e-5 };
        self.run(name, |recorder| Ok(ops::group_norm(recorder, &x, &layer, true)?.pixels)).await
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
        self.run(name, |recorder| Ok(ops::depthwise(recorder, &x, &weight, &bias)?.pixels)).await
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
        Ok(FeatureMap { height: side, width: side, pixels })
    }
}
