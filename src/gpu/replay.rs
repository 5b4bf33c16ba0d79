//! Replays: the dispatches of a step, recorded once and repeated for the positions after it.
//!
//! A decoding step differs from the one before it in a few parameters only, which count positions. A replay keeps the
//! step's dispatches and buffers; repeating it copies the dispatches and advances those parameters.

use super::dispatch::{Cost, MAX_DISPATCHES, MAX_PARAMS_BYTES};
use super::encode::Command;
use super::memory::Buffer;
use super::recorder::{Capture, Recorder};
use crate::Result;

/// Dispatches that are repeated for later positions.
#[derive(Debug)]
pub struct Replay {
    commands: Vec<Command>,
    /// Parameters of all dispatches, one slot each.
    params: Vec<u8>,
    /// Offsets in `params` of the u32 values that count positions.
    advancing: Vec<usize>,
    /// The positions after the recorded one for which the dispatches are the same.
    positions: usize,
    cost: Cost,
    /// The temporary buffers that the dispatches write: taken out of the pool, so that nothing else is stored there.
    /// They return to it in this order, which hands them out as the recording got them.
    _buffers: Vec<Buffer>,
}

impl Replay {
    /// The positions after the recorded one that it can be repeated for.
    pub fn positions(&self) -> usize {
        self.positions
    }
}

impl Recorder {
    /// Records dispatches that write only temporary tensors made by `record` and persistent ones. Also returns them for
    /// [`Self::replay`], unless that is not possible: in dry runs, between guard zones, if they are more than one
    /// submission, or if a temporary tensor is used elsewhere. Whoever has the replay keeps the persistent tensors.
    ///
    /// # Errors
    /// Those of `record`.
    pub fn capture<T>(&mut self, record: impl FnOnce(&mut Self) -> Result<T>) -> Result<(T, Option<Replay>)> {
        let (first, start) = (self.commands.len(), self.params.len());
        let before = self.cost;
        self.capture = Some(Capture { advancing: Vec::new(), positions: usize::MAX, pooled: Vec::new() });
        let recorded = record(self);
        let capture = self.capture.take();
        let recorded = recorded?;
        // None if commands were submitted meanwhile.
        let Some(Capture { advancing, positions, pooled }) = capture.filter(|_| !self.gpu().guarded()) else {
            return Ok((recorded, None));
        };
        let commands = &self.commands[first..];
        if commands.is_empty() || !commands.iter().all(|command| matches!(command, Command::Dispatch { .. })) {
            return Ok((recorded, None));
        }
        let Some(buffers) = self.gpu().take_from_pool(&pooled) else { return Ok((recorded, None)) };
        let replay = Replay {
            commands: commands.to_vec(),
            params: self.params[start..].to_vec(),
            advancing: advancing.into_iter().map(|offset| offset - start).collect(),
            positions,
            cost: Cost { bytes: self.cost.bytes - before.bytes, flops: self.cost.flops - before.flops },
            _buffers: buffers,
        };
        Ok((recorded, Some(replay)))
    }

    /// Records the dispatches of `replay` for the position `positions` after the recorded one; at most
    /// [`Replay::positions`].
    ///
    /// # Errors
    /// [Device errors](super) of what is submitted when the recording is full.
    pub fn replay(&mut self, replay: &Replay, positions: usize) -> Result<()> {
        debug_assert!(positions <= replay.positions);
        if self.params.len() + replay.params.len() > MAX_DISPATCHES * MAX_PARAMS_BYTES {
            self.flush()?;
        }
        let start = self.params.len();
        self.params.extend_from_slice(&replay.params);
        for offset in &replay.advancing {
            let Some(value) = self.params[start + offset..].first_chunk_mut::<4>() else { continue };
            *value = (u32::from_le_bytes(*value) + positions as u32).to_le_bytes();
        }
        self.commands.extend_from_slice(&replay.commands);
        self.cost.bytes += replay.cost.bytes;
        self.cost.flops += replay.cost.flops;
        Ok(())
    }
}
