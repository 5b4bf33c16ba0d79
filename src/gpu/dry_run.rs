//! What a recording would run.

use std::any::Any;
use std::collections::HashMap;

use super::dispatch::Cost;
use super::extensions::Traces;
use super::kernel::Kernel;

/// What a dry run recorded.
#[derive(Debug, Default)]
pub struct DryRunReport {
    /// The specialisations, and what each would do.
    pub kernels: HashMap<Kernel, KernelUse>,
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
    /// What was recorded in the trace of type `T` ([`super::Recorder::trace`]), if anything.
    pub fn trace<T: Any>(&self) -> Option<&T> {
        self.traces.get()
    }
}
