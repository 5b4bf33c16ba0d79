//! Compares predictions with the measurements that exist: those on an H200 (docs/performance.md).

use mgm::gpu::AdapterChoice;
use mgm::ops::{Epilogue, linear};
use mgm::tensor::{Matrix, Precision, Tensor};
use serde::Serialize;

use super::counts::Table;
use super::devices::{self, Device};
use super::model::{self, Work};
use super::{llama, work};
use crate::bench::synthetic;

/// The device of the measurements.
pub const MEASURED_ON: &str = "h200";

/// Rows of x, rows and columns of W, the precision of W, and microseconds by `mgm tune`. Mesa's counts are of the
/// kernels now; these were measured at a state shortly before.
const MEASURED: [(usize, usize, usize, Precision, f64); 9] = [
    (1, 4096, 4096, Precision::Q4, 10.9),
    (1, 22016, 4096, Precision::Q4, 27.2),
    (1, 4096, 11008, Precision::Q4, 20.2),
    (1, 32000, 4096, Precision::Q8, 43.2),
    (512, 4096, 4096, Precision::Q4, 121.0),
    (512, 4096, 4096, Precision::Q8, 136.0),
    (512, 22016, 4096, Precision::Q4, 688.0),
    (512, 1280, 1280, Precision::F16, 32.0),
    (512, 10240, 1280, Precision::F16, 138.0),
];

/// llama.cpp with a LLaMA 7B in Q4_0, 640 tokens in and 64 out, of two runs: milliseconds of the prompt, and of a
/// token.
const MEASURED_LLAMA: [(&str, f64); 2] = [("prefill", 640e3 / 8952.0), ("token", 1e3 / 253.0)];

/// A measurement and its prediction.
#[derive(Debug, Serialize)]
pub struct Check {
    pub what: String,
    pub measured_us: f64,
    pub predicted_us: f64,
    pub limit: &'static str,
}

/// All of them.
pub async fn run(adapter: AdapterChoice) -> mgm::Result<Vec<Check>> {
    let device: &Device = devices::find(MEASURED_ON)?;
    let [ours, theirs] = device.tables.map(Table::parse);
    let gpu = work::open(device.kernels(), adapter).await?;
    let mut checks = Vec::new();
    let mut check = |what: String, measured_us: f64, table: &Table, works: &[Work]| {
        let mut time = model::Time::default();
        for work in works {
            time += model::time(device, table, work);
        }
        checks.push(Check { what, measured_us, predicted_us: time.total(), limit: time.bottleneck().name() });
    };
    for (m, n, k, precision, measured_us) in MEASURED {
        let weight = Matrix::random(&gpu, precision, n, k, 1, "weight")?;
        let x = Tensor::temporary(&gpu, &[m, k], "x")?;
        let mut recorder = gpu.dry_run();
        linear(&mut recorder, &x, &weight, Epilogue::default())?;
        let works = work::works(&recorder.into_report())?;
        check(format!("mgm, {precision} {m} x {n} x {k}"), measured_us, &ours, &works);
    }
    let variant = synthetic::released("mgm-7b")?;
    for part in llama::parts(device, &theirs, &variant.language, 640) {
        if let Some((_, measured_ms)) = MEASURED_LLAMA.iter().find(|(name, _)| *name == part.name) {
            check(format!("llama.cpp, 7B {}", part.name), (measured_ms * 1e3).round(), &theirs, &part.works);
        }
    }
    Ok(checks)
}

#[cfg(test)]
mod tests {
    /// No constant of the model was fitted to a kernel.
    #[test]
    fn predictions_are_within_a_factor_of_two_of_the_measurements() {
        let checks = pollster::block_on(super::run(super::AdapterChoice::default())).expect("predictions");
        for check in &checks {
            let ratio = check.predicted_us / check.measured_us;
            assert!((0.5..2.0).contains(&ratio), "{check:?}: {ratio}");
        }
    }
}
