//! What a recording would run.

use std::any::Any;
use std::collections::HashMap;

use super::dispatch::Cost;
use super::extensions::Traces;
use super::kernel::Kernel;

/// What a dry run recorded.
#[derive(Debug, Default)]
pub struct DryRunReport {
    /// Every dispatch, in the order of the recording.
    pub launches: Vec<Launch>,
    pub(super) traces: Traces,
}

/// The dispatches of one kernel in a dry run.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct KernelUse {
    /// Number of dispatches.
    pub dispatches: u64,
    /// The cost of all of them.
    pub cost: Cost,
}

/// One dispatch of a dry run.
#[derive(Debug, Clone, PartialEq)]
pub struct Launch {
    /// What it runs.
    pub kernel: Kernel,
    /// Workgroups.
    pub grid: [u32; 3],
    /// What it must move and compute.
    pub cost: Cost,
}

impl DryRunReport {
    /// The specialisations, and what each would do.
    pub fn kernels(&self) -> HashMap<Kernel, KernelUse> {
        let mut kernels: HashMap<&Kernel, KernelUse> = HashMap::new();
        for Launch { kernel, cost, .. } in &self.launches {
            let uses = kernels.entry(kernel).or_default();
            uses.dispatches += 1;
            uses.cost.bytes += cost.bytes;
            uses.cost.flops += cost.flops;
        }
        kernels.into_iter().map(|(kernel, uses)| (kernel.clone(), uses)).collect()
    }

    /// What was recorded in the trace of type `T` ([`super::Recorder::trace`]), if anything.
    pub fn trace<T: Any>(&self) -> Option<&T> {
        self.traces.get()
    }
}
