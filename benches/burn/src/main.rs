//! Times burn's kernels at shapes of `mgm bench --roofline`, on the same adapter.
//!
//!     cargo run --release --manifest-path benches/burn/Cargo.toml [ROUNDS]
//!     mgm bench --roofline --only f32
//!
//! On a software adapter set CUBECL_WGPU_DEFAULT_DEVICE=Cpu. A time is the median of the rounds. A round calls the
//! kernel for 50 ms and waits for the last call; burn's autotuning comes before. Text goes to standard error, one JSON
//! object to standard output.

use std::error::Error;
use std::time::{Duration, Instant};

use burn::tensor::module::conv2d;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, DeviceKind, Distribution, Tensor};
use serde_json::{Value, json};

/// Calls before the first that counts: kernels are compiled and chosen in them.
const WARM_UP: usize = 3;
/// What calls that are timed together last, as in `mgm bench --roofline`.
const TOGETHER: Duration = Duration::from_millis(50);

struct Bench {
    device: Device,
    rounds: usize,
    rows: Vec<Value>,
}

impl Bench {
    fn run<const D: usize>(
        &mut self,
        name: &str,
        flops: usize,
        operation: impl Fn() -> Tensor<D>,
    ) -> Result<(), Box<dyn Error>> {
        // Kernels that were skipped or went wrong are no measurement.
        if !operation().sum().into_scalar::<f32>().is_finite() {
            return Err(format!("{name}: the result is not finite").into());
        }
        let time = |calls: usize| -> Result<Duration, Box<dyn Error>> {
            self.device.sync()?;
            let started = Instant::now();
            for _ in 0..calls {
                operation();
            }
            self.device.sync()?;
            Ok(started.elapsed())
        };
        for _ in 0..WARM_UP {
            time(1)?;
        }
        let mut calls = 1;
        while time(calls)? < TOGETHER {
            calls *= 2;
        }
        let mut times = Vec::new();
        for _ in 0..self.rounds {
            times.push(time(calls)?.as_secs_f64() * 1000.0 / calls as f64);
        }
        times.sort_by(f64::total_cmp);
        let median = times.get(times.len() / 2).copied().ok_or("no rounds")?;
        let rate = flops as f64 / median / 1e6;
        eprintln!("{name:<44} {median:>10.3} ms {rate:>8.2} GFLOP/s");
        self.rows.push(json!({ "kernel": name, "milliseconds": median, "gflop_per_s": rate }));
        Ok(())
    }

    fn random<const D: usize>(&self, shape: [usize; D]) -> Tensor<D> {
        Tensor::random(shape, Distribution::Uniform(-1.0, 1.0), &self.device)
    }

    fn linear(&mut self, m: usize, n: usize, k: usize) -> Result<(), Box<dyn Error>> {
        let (x, weight) = (self.random([m, k]), self.random([n, k]));
        self.run(&format!("linear f32 {m} x {n} x {k}"), 2 * m * n * k, || x.clone().matmul(weight.clone().transpose()))
    }

    fn convolution(&mut self, channels: usize, side: usize) -> Result<(), Box<dyn Error>> {
        let x = self.random([1, channels, side, side]);
        let (weight, bias) = (self.random([channels, channels, 3, 3]), self.random([channels]));
        let name = format!("convolution f32 3x3 {channels} x {side} x {side}");
        self.run(&name, 2 * 9 * channels * channels * side * side, || {
            let options = ConvOptions::new([1, 1], [1, 1], [1, 1], 1);
            conv2d(x.clone(), weight.clone(), Some(bias.clone()), options)
        })
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let rounds = std::env::args().nth(1).map_or(Ok(10), |text| text.parse())?;
    let mut bench = Bench { device: Device::wgpu(DeviceKind::DefaultDevice), rounds, rows: Vec::new() };
    for (m, n, k) in [(128, 1024, 1024), (512, 4096, 1024)] {
        bench.linear(m, n, k)?;
    }
    for (channels, side) in [(320, 32), (1280, 8)] {
        bench.convolution(channels, side)?;
    }
    println!("{}", json!({ "peer": "burn, wgpu", "rows": bench.rows }));
    Ok(())
}
