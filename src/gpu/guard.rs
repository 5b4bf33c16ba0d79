//! Guard zones: a fixed pattern before and after every tensor, which no kernel may touch. For tests, since pipelines
//! are made without bounds checks.

use std::sync::Arc;

use super::lock::Lock;
use super::memory::Buffer;

/// Bytes before a tensor, and the minimum after it: a multiple of every alignment of a storage binding.
pub(super) const ZONE_BYTES: u64 = 256;

/// A NaN, so that what is read out of bounds and used, or never written and read, shows up in the results; a signalling
/// one, so that adding to it changes its bits.
pub(super) const PATTERN: u32 = 0x7fa0_dead;

/// The pattern over `bytes`, a multiple of 4.
pub(super) fn pattern(bytes: u64) -> Vec<u8> {
    PATTERN.to_le_bytes().repeat(bytes as usize / 4)
}

/// A tensor between guard zones.
#[derive(Debug)]
pub(super) struct Guarded {
    pub(super) buffer: Arc<Buffer>,
    /// The offset of the tensor in the buffer.
    pub(super) start: u64,
    pub(super) bytes: u64,
    pub(super) what: String,
}

/// The tensors placed between guard zones and not checked yet.
#[derive(Debug, Default)]
pub(super) struct Guards(Lock<Vec<Guarded>>);

impl Guards {
    pub(super) fn add(&self, buffer: Arc<Buffer>, start: u64, bytes: u64, what: &str) {
        let guarded = Guarded { buffer, start, bytes, what: what.to_owned() };
        self.0.lock().push(guarded);
    }

    /// The tensors, which are then forgotten.
    pub(super) fn take(&self) -> Vec<Guarded> {
        std::mem::take(&mut *self.0.lock())
    }
}
