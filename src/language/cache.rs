//! The key/value cache of all layers.

use crate::gpu::Recorder;
use crate::ops::{Attention, KvCache, Rope, RopeTable};
use crate::{Error, Result};

/// The cache grows by at least this many positions.
const STEP: usize = 256;

/// Keys and values of the positions that a language model has seen. It grows as needed.
#[derive(Debug)]
pub struct Cache {
    attention: Attention,
    rotary: Rope,
    half: bool,
    depth: usize,
    /// Positions that the model was made for: growing in advance stops there.
    context: usize,
    layers: Vec<KvCache>,
    table: Option<RopeTable>,
    length: usize,
}

impl Cache {
    pub(super) fn new(depth: usize, context: usize, attention: Attention, rotary: Rope, half: bool) -> Self {
        Self { attention, rotary, half, depth, context, layers: Vec::new(), table: None, length: 0 }
    }

    /// Positions in it.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Forgets all positions from `length` on.
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }

    /// Makes room for `positions` positions in all, so that growing later is not needed. What was recorded so far is
    /// submitted where the cache grows: without room, or without the rest of a recording, it is as it was.
    pub fn reserve(&mut self, recorder: &mut Recorder, positions: usize) -> Result<()> {
        let capacity = self.layers.first().map_or(0, KvCache::capacity);
        if positions <= capacity {
            return Ok(());
        }
        // Half as much again: a long answer copies the cache a few times, not at every step.
        let ahead = (capacity + capacity / 2).min(self.context);
        let capacity = positions.max(ahead).next_multiple_of(STEP);
        let layers = larger(recorder, &self.layers, self.depth, self.length, &self.attention, capacity, self.half)?;
        let gpu = recorder.gpu().clone();
        let table = RopeTable::new(&gpu, capacity, self.attention.head_dim, &self.rotary)?;
        recorder.flush()?;
        self.layers = layers;
        self.table = Some(table);
        Ok(())
    }

    pub(super) fn layers(&self) -> &[KvCache] {
        &self.layers
    }

    pub(super) fn table(&self) -> Result<&RopeTable> {
        self.table.as_ref().ok_or_else(|| Error::Internal("the cache has no room yet".to_owned()))
    }

    pub(super) fn advance(&mut self, positions: usize) {
        self.length += positions;
    }
}

/// Caches of so many layers with room for `capacity` positions, the first `length` as in `before`.
pub(super) fn larger(
    recorder: &mut Recorder,
    before: &[KvCache],
    depth: usize,
    length: usize,
    attention: &Attention,
    capacity: usize,
    half: bool,
) -> Result<Vec<KvCache>> {
    let columns = attention.kv_heads * attention.head_dim;
    let mut layers = Vec::with_capacity(depth);
    for layer in 0..depth {
        let larger = KvCache::new(recorder.gpu(), capacity, columns, half)?;
        if let Some(cache) = before.get(layer) {
            cache.copy_to(recorder, &larger, length);
        }
        layers.push(larger);
    }
    Ok(layers)
}
