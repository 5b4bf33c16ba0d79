//! Time per kernel, from timestamps around every dispatch.

use std::collections::BTreeMap;
use std::fmt;

use super::device::Gpu;
use super::readback::read_staging;
use crate::Result;

/// What one kernel cost, summed over its dispatches.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct KernelTime {
    /// Dispatches.
    pub calls: u64,
    /// Time on the device, in nanoseconds.
    pub nanoseconds: f64,
    /// Bytes that the algorithm must read and write.
    pub bytes: f64,
    /// Floating-point operations that the algorithm must do (a multiply-add counts as two).
    pub flops: f64,
}

/// A table of kernels.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Profile {
    /// By kernel name.
    pub kernels: BTreeMap<&'static str, KernelTime>,
}

impl Profile {
    /// Adds one dispatch.
    fn add(&mut self, name: &'static str, nanoseconds: f64, bytes: f64, flops: f64) {
        let entry = self.kernels.entry(name).or_default();
        entry.calls += 1;
        entry.nanoseconds += nanoseconds;
        entry.bytes += bytes;
        entry.flops += flops;
    }

    /// Time of all kernels, in nanoseconds.
    pub fn total_nanoseconds(&self) -> f64 {
        self.kernels.values().map(|time| time.nanoseconds).sum()
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.total_nanoseconds().max(1.0);
        writeln!(f, "{:<24} {:>8} {:>12} {:>6} {:>9} {:>10}", "kernel", "calls", "time ms", "%", "GB/s", "GFLOP/s")?;
        let mut rows: Vec<_> = self.kernels.iter().collect();
        rows.sort_by(|a, b| b.1.nanoseconds.total_cmp(&a.1.nanoseconds));
        for (name, time) in rows {
            let nanoseconds = time.nanoseconds.max(1.0);
            writeln!(
                f,
                "{name:<24} {:>8} {:>12.3} {:>6.1} {:>9.2} {:>10.2}",
                time.calls,
                time.nanoseconds / 1e6,
                100.0 * time.nanoseconds / total,
                time.bytes / nanoseconds,
                time.flops / nanoseconds,
            )?;
        }
        Ok(())
    }
}

impl Gpu {
    /// Times per kernel since the last call; empty unless the device was opened for profiling.
    ///
    /// # Errors
    /// [Device errors](super).
    pub async fn take_profile(&self) -> Result<Profile> {
        let mut profile = Profile::default();
        let period = f64::from(self.queue().get_timestamp_period());
        for times in self.take_times() {
            let bytes = read_staging(self, &times.staging, times.staging.size(), None).await?;
            let ticks: Vec<[u64; 2]> = bytemuck::pod_collect_to_vec(&bytes);
            for ((name, cost), [begin, end]) in times.dispatches.into_iter().zip(ticks) {
                profile.add(name, end.saturating_sub(begin) as f64 * period, cost.bytes, cost.flops);
            }
        }
        Ok(profile)
    }
}
