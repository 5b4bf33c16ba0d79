//! The time of a dispatch, from counts and published figures. docs/gpu-model.md states the assumptions.

use super::counts::Table;
use super::devices::Device;

/// The share of the published bandwidth that plain reads reach: 4.03 of 4.8 TB/s on an H200.
const BANDWIDTH_SHARE: f64 = 0.84;
/// Nanoseconds until a load from memory returns. Measurements by others are between 250 and 500.
const MEMORY_LATENCY: f64 = 400.0;
/// A dispatch.
#[derive(Debug, Clone, PartialEq)]
pub struct Work {
    /// The kernel's name in the table; none for element-wise kernels that are not in it, which count by their bytes.
    pub kernel: Option<String>,
    /// Bytes read and written, each once.
    pub bytes: f64,
    pub flops: f64,
    pub workgroups: f64,
    /// Invocations of a workgroup.
    pub invocations: f64,
    /// Whether it starts only when the dispatch before it has ended.
    pub waits: bool,
}

/// What limits a dispatch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    Dispatch,
    Bandwidth,
    Issue,
    Matrix,
    Occupancy,
}

impl Limit {
    pub const ALL: [Self; 5] = [Self::Dispatch, Self::Bandwidth, Self::Issue, Self::Matrix, Self::Occupancy];

    pub fn name(self) -> &'static str {
        match self {
            Self::Dispatch => "dispatch",
            Self::Bandwidth => "bandwidth",
            Self::Issue => "issue",
            Self::Matrix => "matrix units",
            Self::Occupancy => "occupancy",
        }
    }
}

/// Microseconds per limit, in the order of [`Limit::ALL`].
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Time {
    pub by_limit: [f64; 5],
    /// Those that are based on counts of the kernel itself, not of a similar kernel.
    pub counted: f64,
}

impl Time {
    pub fn total(&self) -> f64 {
        self.by_limit.iter().sum()
    }

    /// What most of the time is spent on.
    pub fn bottleneck(&self) -> Limit {
        let of = |limit: &Limit| self.by_limit[*limit as usize];
        Limit::ALL.into_iter().max_by(|a, b| of(a).total_cmp(&of(b))).unwrap_or(Limit::Dispatch)
    }
}

impl std::ops::AddAssign for Time {
    fn add_assign(&mut self, other: Self) {
        for (sum, more) in self.by_limit.iter_mut().zip(other.by_limit) {
            *sum += more;
        }
        self.counted += other.counted;
    }
}

/// Whether nearly all instructions of a kernel are in loops around its multiply-adds, so that these give their number.
fn multiplies(kernel: &str) -> bool {
    const PREFIXES: [&str; 12] = [
        "matmul",
        "matvec",
        "attention_cooperative",
        "attention_decode",
        "attention_tiled",
        "depthwise",
        "mining_products",
        "mm_",
        "mmq_",
        "mv_",
        "fa_",
        "roofline_fma",
    ];
    PREFIXES.iter().any(|prefix| kernel.starts_with(prefix))
}

/// The time of one dispatch.
pub fn time(device: &Device, table: &Table, work: &Work) -> Time {
    let found = work.kernel.as_ref().and_then(|name| Some((name.as_str(), table.find(name)?)));
    let per_us = |per_s: f64| per_s / 1e6;
    let bandwidth = per_us(device.gigabytes_per_s * 1e9) * BANDWIDTH_SHARE;
    let gap = if work.waits { device.gap } else { 0.0 };
    let bytes_us = work.bytes / bandwidth;
    let Some((name, (counts, own))) = found else {
        return Time { by_limit: [gap, bytes_us, 0.0, 0.0, 0.0], counted: gap + bytes_us };
    };

    // The busiest core has this many workgroups, one after the other and some at a time.
    let per_core = (work.workgroups / device.cores).ceil();
    let fit = (device.resident_invocations(counts.occupancy, counts.subgroup) / work.invocations).floor();
    let at_a_time = fit.clamp(1.0, per_core);
    let resident = at_a_time * work.invocations;
    let imbalance = per_core * device.cores / work.workgroups;

    // Bytes, at full bandwidth; and with what the resident invocations have under way.
    let under_way = device.cores.min(work.workgroups) * resident * counts.load_bytes;
    let needed = bandwidth * MEMORY_LATENCY / 1e3;
    let memory_us = if under_way > 0.0 { bytes_us * (needed / under_way).max(1.0) } else { bytes_us };

    // Instructions, at one a lane and cycle; and with the latency that the resident invocations hide.
    let per_instruction = match device.issues_together() {
        true => counts.multiply_adds.max(counts.alu_share),
        false => counts.multiply_adds,
    };
    let once = work.workgroups * work.invocations * counts.instructions;
    let instructions = match multiplies(name) && per_instruction > 0.0 {
        true => work.flops / 2.0 / per_instruction,
        false => once,
    };
    let issue = instructions / per_us(device.cores * device.lanes * device.ghz * 1e9);
    let hidden = (resident / (device.lanes * device.issue_latency())).min(1.0);
    let issue_us = issue * imbalance / hidden;

    // Matrix operations.
    let on_matrix_units = name.contains("_cooperative") || name.contains("matrices");
    let matrix = match on_matrix_units && device.matrix_tflops > 0.0 {
        true => work.flops / per_us(device.matrix_tflops * 1e12),
        false => 0.0,
    };
    let matrix_us = matrix * imbalance;

    // The three overlap only if the workgroups on a core are in different phases.
    let sum = memory_us + issue_us + matrix_us;
    let slowest = memory_us.max(issue_us).max(matrix_us);
    let busy = slowest + (sum - slowest) / at_a_time;
    let mut by_limit = [gap, 0.0, 0.0, 0.0, 0.0];
    let ideal = [(Limit::Bandwidth, bytes_us), (Limit::Issue, issue), (Limit::Matrix, matrix)];
    let (limit, least) = ideal.into_iter().fold(ideal[0], |most, next| if next.1 > most.1 { next } else { most });
    by_limit[limit as usize] = least;
    by_limit[Limit::Occupancy as usize] = busy - least;
    Time { by_limit, counted: gap + if own { busy } else { 0.0 } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::predict::devices;

    fn table() -> Table {
        Table::parse(
            "kernel\tsubgroup\tfma/instr\tfma/alu\tloops\tload\tshared\tregs\toccupancy\tspills\tscratch\tinstr\tcycles\n\
             matvec\t32\t0.5\t60%\t64/32\t16x4\t\t32\t48\t0\t0\t445\t9\n\
             matmul\t32\t0.5\t60%\t64/32\t\t\t32\t8\t0\t0\t445\t9\n",
        )
    }

    fn work(kernel: &str, bytes: f64, flops: f64, workgroups: f64) -> Work {
        Work { kernel: Some(kernel.to_owned()), bytes, flops, workgroups, invocations: 128.0, waits: true }
    }

    #[test]
    fn a_kernel_that_only_reads_takes_its_bytes_over_the_bandwidth() {
        let device = devices::find("rtx-4090").expect("a device");
        let time = time(device, &table(), &work("matvec", 1e9, 0.0, 12800.0));
        // 1 GB at 84 % of 1008 GB/s, and the gap of 4 us.
        assert!((time.total() - (1e6 / (0.84 * 1008.0) + 4.0)).abs() < 1e-6, "{time:?}");
        assert_eq!(time.bottleneck(), Limit::Bandwidth);
    }

    #[test]
    fn a_kernel_that_only_computes_takes_its_instructions_over_the_issue_rate() {
        let device = devices::find("rtx-4090").expect("a device");
        // Full: 48 warps hide four cycles. 1e12 multiply-adds of two instructions, on 128 x 128 lanes at 2.52 GHz.
        let full = time(device, &table(), &work("matvec", 0.0, 2e12, 12800.0));
        assert!((full.total() - (2e12 / (128.0 * 128.0 * 2520.0) + 4.0)).abs() < 1e-3, "{full:?}");
        assert_eq!(full.bottleneck(), Limit::Issue);
        // 8 warps hide half of four cycles on 4 schedulers: twice the time, half of it for want of occupancy.
        let half = time(device, &table(), &work("matmul", 0.0, 2e12, 12800.0));
        assert!((half.total() - 4.0 - 2.0 * (full.total() - 4.0)).abs() < 1e-3, "{half:?}");
        // One workgroup: one core of 128.
        let alone = time(device, &table(), &work("matvec", 0.0, 2e9, 1.0));
        assert!((alone.total() - 4.0 - 4.0 * 2e9 / (128.0 * 2520.0)).abs() < 1e-3, "{alone:?}");
        assert_eq!(alone.bottleneck(), Limit::Occupancy);
    }

    #[test]
    fn small_work_takes_the_gap() {
        let device = devices::find("rtx-4090").expect("a device");
        let time = time(device, &table(), &work("matvec", 1e4, 1e4, 32.0));
        assert_eq!(time.bottleneck(), Limit::Dispatch);
    }

    #[test]
    fn an_unknown_device_is_an_error_that_lists_the_known() {
        let error = devices::find("voodoo").expect_err("no such device").to_string();
        assert!(error.contains("voodoo") && error.contains("rtx-4090") && error.contains("adreno-660"), "{error}");
    }
}
