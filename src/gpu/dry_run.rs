//! What a recording would run.

use std::any::Any;
use std::collections::HashSet;

use super::Kernel;
use super::extensions::Traces;

/// What a dry run recorded.
#[derive(Debug, Default)]
pub struct DryRunReport {
    /// The specialisations.
    pub kernels: HashSet<Kernel>,
    pub(super) traces: Traces,
}

impl DryRunReport {
    /// What was recorded in the trace of type `T` ([`Recorder::trace`]), if anything.
    pub fn trace<T: Any>(&self) -> Option<&T> {
        self.traces.get()
    }
}
