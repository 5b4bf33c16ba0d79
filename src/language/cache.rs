//! The key/value cache of all layers.

use crate::gpu::Recorder;
use crate::ops::{Attention, KvCache, Rope, RopeTable};
use crate::{Error, Result};

/// The cache grows by at least this many positions.
const STEP: usize = 256;

/// Keys and values of the positions that a language model has processed. It grows as needed.
#[derive(Debug)]
pub struct Cache {
    attention: Attention,
    rope: Rope,
    half: bool,
    depth: usize,
    /// The context length of the model: the cache does not grow beyond it in advance.
    context: usize,
    layers: Vec<KvCache>,
    table: Option<RopeTable>,
    length: usize,
}

impl Cache {
    pub(super) fn new(depth: usize, context: usize, attention: Attention, rope: Rope, half: bool) -> Self {
        Self { attention, rope, half, depth, context, layers: Vec::new(), table: None, length: 0 }
    }

    /// The number of cached positions.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Drops all positions from `length` on.
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }

    /// Makes room for `positions` positions in all, so that the cache does not have to grow later. If it grows, the
    /// commands recorded so far are submitted.
    ///
    /// # Errors
    /// [Device errors](crate::gpu). The cache is then unchanged.
    pub fn reserve(&mut self, recorder: &mut Recorder, positions: usize) -> Result<()> {
        let capacity = self.layers.first().map_or(0, KvCache::capacity);
        if positions <= capacity {
            return Ok(());
        }
        // Growth by half: a long answer copies the cache a few times, not at every step.
        let grown = (capacity + capacity / 2).min(self.context);
        let capacity = positions.max(grown).next_multiple_of(STEP);
        let layers = larger(recorder, &self.layers, self.depth, self.length, &self.attention, capacity, self.half)?;
        let gpu = recorder.gpu().clone();
        let table = RopeTable::new(&gpu, capacity, self.attention.head_dim, &self.rope)?;
        recorder.flush()?;
        self.layers = layers;
        self.table = Some(table);
        Ok(())
    }

    pub(super) fn layers(&self) -> &[KvCache] {
        &self.layers
    }

    pub(super) fn table(&self) -> Result<&RopeTable> {
        self.table.as_ref().ok_or_else(|| Error::Internal("the cache has no capacity".to_owned()))
    }

    pub(super) fn advance(&mut self, positions: usize) {
        self.length += positions;
    }
}

/// Caches of `depth` layers with room for `capacity` positions. The first `length` are copied from `before`.
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
