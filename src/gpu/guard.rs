//! Guard zones: a fixed pattern before and after every tensor, which no kernel may touch. For tests, since pipelines
//! are made without bounds checks.

use std::sync::Arc;

use super::Gpu;
use super::lock::Lock;
use super::memory::Buffer;
use super::recorder::Binding;
use crate::{Error, Result};

/// Bytes before a tensor, and the minimum after it: a multiple of every alignment of a storage binding.
pub(super) const ZONE_BYTES: u64 = 256;

/// A NaN, so that what is read out of bounds and used, or never written and read, shows up in the results; a signalling
/// one, so that adding to it changes its bits.
const PATTERN: u32 = 0x7fa0_dead;

/// The pattern over `bytes`, a multiple of 4.
pub(super) fn pattern(bytes: u64) -> Vec<u8> {
    PATTERN.to_le_bytes().repeat(bytes as usize / 4)
}

#[derive(Debug)]
struct Guarded {
    buffer: Arc<Buffer>,
    start: u64,
    bytes: u64,
    what: String,
}

/// The tensors placed between guard zones and not checked yet.
#[derive(Debug, Default)]
pub(super) struct Guards(Lock<Vec<Guarded>>);

impl Guards {
    pub(super) fn add(&self, buffer: Arc<Buffer>, start: u64, bytes: u64, what: &str) {
        let guarded = Guarded { buffer, start, bytes, what: what.to_owned() };
        self.0.lock().push(guarded);
    }

    /// Reads every zone back and forgets the tensors.
    pub(super) async fn check(&self, gpu: &Gpu) -> Result<()> {
        let tensors = std::mem::take(&mut *self.0.lock());
        let mut recorder = gpu.record();
        let mut zones = Vec::new();
        for tensor in &tensors {
            let end = tensor.start + tensor.bytes;
            for (side, offset, bytes) in [("before", 0, tensor.start), ("after", end, tensor.buffer.bytes() - end)] {
                let binding = Binding { buffer: &tensor.buffer, offset, bytes };
                zones.push((tensor, side, recorder.read_back(binding)));
            }
        }
        recorder.submit()?;
        for (tensor, side, zone) in zones {
            let words: Vec<u32> = zone.values().await?;
            if let Some(at) = words.iter().position(|word| *word != PATTERN) {
                return Err(Error::Gpu(format!(
                    "{} ({} bytes): byte {} of the guard zone {side} it was overwritten with {:#010x}",
                    tensor.what,
                    tensor.bytes,
                    4 * at,
                    words[at]
                )));
            }
        }
        Ok(())
    }
}
