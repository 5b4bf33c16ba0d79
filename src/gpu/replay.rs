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
    /// The number of later positions for which it can be replayed.
    positions: usize,
    cost: Cost,
    /// Temporary buffers of the dispatches. They are out of the pool so that nothing else writes to them. They return
    /// in this order, so that the next recording gets the same ones.
    _buffers: Vec<Buffer>,
}

impl Replay {
    /// The number of later positions for which it can be replayed.
    pub fn positions(&self) -> usize {
        self.positions
    }
}

impl Recorder {
    /// Runs `record` and returns its dispatches as a [`Replay`] if they can be replayed. `record` may write only
    /// persistent tensors and temporary tensors that it makes. There is no replay in a dry run, with guard zones, if
    /// the dispatches did not fit into one submission, or if a temporary tensor is still in use. The caller must keep
    /// the persistent tensors alive as long as the replay.
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

    /// Records the dispatches of `replay`, `positions` positions after the recorded one (at most
    /// [`Replay::positions`]).
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
            let value = &mut self.params[start + offset..start + offset + 4];
            let advanced = bytemuck::pod_read_unaligned::<u32>(value) + positions as u32;
            value.copy_from_slice(&advanced.to_ne_bytes());
        }
        self.commands.extend_from_slice(&replay.commands);
        self.cost.bytes += replay.cost.bytes;
        self.cost.flops += replay.cost.flops;
        Ok(())
    }
}
