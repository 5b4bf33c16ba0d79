//! Time, GFLOP/s and GB/s of the kernels at shapes of the released models: `cargo bench --bench kernels [-- FILTER]`.
//!
//! A row is the median of a few runs, each a submission with its wait. `MGM_ADAPTER` chooses the adapter.

use std::time::{Duration, Instant};

use mgm::gpu::{Gpu, GpuOptions, Recorder};
use mgm::ops::{self, Attention, Epilogue, FeatureMap, KeyValues, KvCache, MiningMap, Norm};
use mgm::tensor::{Matrix, Precision, Tensor};

/// A bench ends after this long or this many runs, whichever is first.
const TIME: Duration = Duration::from_secs(3);
const RUNS: usize = 20;
/// A submission lasts about as long, if that takes no more than a hundred of the kernel.
const SUBMISSION: Duration = Duration::from_millis(50);

fn main() -> mgm::Result<()> {
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let adapter = std::env::var("MGM_ADAPTER").ok().and_then(|choice| choice.parse().ok()).unwrap_or_default();
    let gpu = pollster::block_on(Gpu::open(&GpuOptions { adapter, ..Default::default() }))?;
    println!("{}", gpu.adapter().name);
    println!("{:<44} {:>10} {:>10} {:>9}", "kernel", "ms", "GFLOP/s", "GB/s");
    let bench = Bench { gpu, filter };

    for precision in Precision::CHOICES {
        for (m, n, k) in [(1, 4096, 4096), (1, 32768, 2048), (128, 2048, 2048), (577, 1024, 1024), (512, 4096, 1024)] {
            bench.linear(m, n, k, precision)?;
        }
    }
    // SmolLM2-135M.
    for (n, k) in [(960, 576), (576, 576), (3072, 576), (576, 1536)] {
        bench.linear(1, n, k, Precision::Q4)?;
        bench.linear(128, n, k, Precision::Q4)?;
    }
    bench.linear(1, 49152, 576, Precision::Q8)?;
    bench.attention("attention CLIP 577 x 16 x 64", 577, 577, (16, 16, 64), false)?;
    bench.attention("attention prefill 512 x 8/1 x 256", 512, 512, (8, 1, 256), true)?;
    bench.attention("attention decode 1024 x 32 x 128", 1, 1024, (32, 32, 128), true)?;
    bench.norm("norm 577 x 1024", 577, 1024)?;
    bench.depthwise("depthwise 7x7 192 x 64 x 64", 192, 64)?;
    bench.mining("mining, released sizes")?;
    Ok(())
}

struct Bench {
    gpu: Gpu,
    filter: Option<String>,
}

impl Bench {
    fn run(&self, name: &str, mut record: impl FnMut(&mut Recorder) -> mgm::Result<Tensor>) -> mgm::Result<()> {
        if self.filter.as_ref().is_some_and(|filter| !name.contains(filter.as_str())) {
            return Ok(());
        }
        let mut once = |repeat: usize| -> mgm::Result<Duration> {
            let mut recorder = self.gpu.record();
            let mut y = record(&mut recorder)?;
            for _ in 1..repeat {
                y = record(&mut recorder)?;
            }
            let read = y.reshape(&[y.len()]).slice_elements(0..1).read_back(&mut recorder);
            let started = Instant::now();
            recorder.submit()?;
            pollster::block_on(read.bytes())?;
            Ok(started.elapsed())
        };
        once(1)?; // makes pipelines
        // Short kernels share a submission, whose own cost is not theirs.
        let repeat = (SUBMISSION.as_secs_f64() / once(1)?.as_secs_f64()).clamp(1.0, 100.0) as usize;
        self.gpu.take_cost();
        let started = Instant::now();
        let mut times = Vec::new();
        while times.len() < 3 || (started.elapsed() < TIME && times.len() < RUNS) {
            times.push(once(repeat)?.as_secs_f64() / repeat as f64);
        }
        let cost = self.gpu.take_cost();
        let runs = (times.len() * repeat) as f64;
        times.sort_by(f64::total_cmp);
        let median = times[times.len() / 2];
        println!(
            "{name:<44} {:>10.3} {:>10.2} {:>9.2}",
            median * 1e3,
            cost.flops / runs / median / 1e9,
            cost.bytes / runs / median / 1e9
        );
        Ok(())
    }

    fn linear(&self, m: usize, n: usize, k: usize, precision: Precision) -> mgm::Result<()> {
        let weight = Matrix::random(&self.gpu, precision, n, k, 1, "weight")?;
        let x = Tensor::zeros(&self.gpu, &[m, k], "x")?;
        self.run(&format!("linear {precision} {m} x {n} x {k}"), |recorder| {
            ops::linear(recorder, &x, &weight, Epilogue::default())
        })
    }

    fn attention(
        &self,
        name: &str,
        times: usize,
        keys: usize,
        (heads, kv_heads, head_dim): (usize, usize, usize),
        causal: bool,
    ) -> mgm::Result<()> {
        let layer = Attention { heads, kv_heads, head_dim, causal };
        let cache = KvCache::new(&self.gpu, keys, kv_heads * head_dim, true)?;
        let queries = Tensor::zeros(&self.gpu, &[times, heads * head_dim], "queries")?;
        self.run(name, |recorder| ops::attention(recorder, layer, &queries, KeyValues::Cached(&cache, keys)))
    }

    fn norm(&self, name: &str, rows: usize, width: usize) -> mgm::Result<()> {
        let x = Tensor::zeros(&self.gpu, &[rows, width], "x")?;
        let weight = Tensor::zeros(&self.gpu, &[width], "weight")?;
        let layer = Norm { bias: Some(weight.clone()), weight, eps: 1e-5, unit_offset: false };
        self.run(name, |recorder| ops::norm(recorder, &x, &layer))
    }

    fn depthwise(&self, name: &str, channels: usize, side: usize) -> mgm::Result<()> {
        let x = self.map(side, channels)?;
        let weight = Tensor::zeros(&self.gpu, &[49, channels], "weight")?;
        let bias = Tensor::zeros(&self.gpu, &[channels], "bias")?;
        self.run(name, |recorder| Ok(ops::depthwise(recorder, &x, &weight, &bias)?.pixels))
    }

    fn mining(&self, name: &str) -> mgm::Result<()> {
        let stages = [self.map(192, 192)?, self.map(96, 384)?, self.map(48, 768)?, self.map(24, 1536)?];
        let map = MiningMap { stages, pool: 1 };
        let u = Tensor::zeros(&self.gpu, &[576, map.channels()], "u")?;
        self.run(name, |recorder| {
            let statistics = ops::mining_stats(recorder, &map, 1e-5)?;
            ops::mining(recorder, &u, &map, &statistics, 8, (0, 0))
        })
    }

    fn map(&self, side: usize, channels: usize) -> mgm::Result<FeatureMap> {
        let pixels = Tensor::zeros(&self.gpu, &[side * side, channels], "map")?;
        Ok(FeatureMap { height: side, width: side, pixels })
    }
}
