//! Which kernels that round their factors passed their check on a device ([`crate::tuning`]): only then do they run by
//! default.

use std::collections::HashMap;

use crate::gpu::{Gpu, Lock};

/// Kernels that are checked together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Checked {
    /// Products on matrix units.
    MatrixUnits,
    /// Attention on matrix units.
    AttentionOnMatrixUnits,
    /// Products of bytes.
    NativeDots,
    /// Products that add in f16, where the reference has its inputs in f16.
    F16Sums,
}

#[derive(Debug, Default)]
struct Results(Lock<HashMap<Checked, bool>>);

impl Checked {
    /// The result on a device; `None` before the check. A planned device is assumed to pass it.
    pub(crate) fn result(self, gpu: &Gpu) -> Option<bool> {
        let result = gpu.extension::<Results>().0.lock().get(&self).copied();
        result.or(gpu.is_planned().then_some(true))
    }

    /// Whether the kernels run without a measurement.
    pub(crate) fn passed(self, gpu: &Gpu) -> bool {
        self.result(gpu) == Some(true)
    }

    /// Has the kernels run on a device, or not.
    pub(crate) fn set(self, gpu: &Gpu, passed: bool) {
        gpu.extension::<Results>().0.lock().insert(self, passed);
    }
}
