//! Time per kernel, from timestamps around every dispatch.

use std::collections::BTreeMap;
use std::fmt;

use super::Gpu;
use super::readback::read_staging;
use super::recorder::Cost;
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
    pub(super) fn add(&mut self, name: &'static str, nanoseconds: f64, bytes: f64, flops: f64) {
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

/// Timestamps of a submission that were not read yet.
#[derive(Debug)]
pub(super) struct PendingTimes {
    pub(super) queries: wgpu::QuerySet,
    pub(super) resolved: wgpu::Buffer,
    pub(super) staging: wgpu::Buffer,
    pub(super) dispatches: Vec<(&'static str, Cost)>,
}

impl PendingTimes {
    pub(super) fn new(gpu: &Gpu, dispatches: u32) -> Self {
        let device = gpu.device();
        let buffer = |usage| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("timestamps"),
                size: u64::from(dispatches) * 16,
                usage,
                mapped_at_creation: false,
            })
        };
        Self {
            queries: device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("timestamps"),
                ty: wgpu::QueryType::Timestamp,
                count: 2 * dispatches,
            }),
            resolved: buffer(wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC),
            staging: buffer(wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ),
            dispatches: Vec::new(),
        }
    }

    pub(super) fn writes(&self, slot: u32) -> wgpu::ComputePassTimestampWrites<'_> {
        wgpu::ComputePassTimestampWrites {
            query_set: &self.queries,
            beginning_of_pass_write_index: Some(2 * slot),
            end_of_pass_write_index: Some(2 * slot + 1),
        }
    }

    pub(super) async fn add_to(self, profile: &mut Profile, gpu: &Gpu, period: f64) -> Result<()> {
        let ticks: Vec<[u64; 2]> =
            bytemuck::pod_collect_to_vec(&read_staging(gpu, &self.staging, self.staging.size(), None).await?);
        for ((name, cost), [begin, end]) in self.dispatches.into_iter().zip(ticks) {
            profile.add(name, end.saturating_sub(begin) as f64 * period, cost.bytes, cost.flops);
        }
        Ok(())
    }
}
