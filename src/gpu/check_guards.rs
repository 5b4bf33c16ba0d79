//! Reads the guard zones back.

use super::device::Gpu;
use super::dispatch::Binding;
use super::guard::PATTERN;
use crate::{Error, Result};

impl Gpu {
    /// Checks that nothing was written around the tensors created since the last call, on a device opened with guard
    /// zones.
    ///
    /// # Errors
    /// [`Error::Gpu`] that names the tensor around which bytes were overwritten; [device errors](super).
    #[doc(hidden)]
    pub async fn check_guards(&self) -> Result<()> {
        let Some(guards) = self.guards() else { return Ok(()) };
        let tensors = guards.take();
        let mut recorder = self.record();
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
