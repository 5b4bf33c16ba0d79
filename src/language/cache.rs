//! The key/value cache of all layers.

use super::LanguageModel;
use crate::gpu::{Recorder, Replay};
use crate::ops::{Attention, KvCache, Rope, RopeTable};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// The cache grows by at least this many positions.
const STEP: usize = 256;

/// Keys and values of all layers, and the angles of the rows' positions.
#[derive(Debug)]
pub(super) struct LayerCaches {
    attention: Attention,
    rope: Rope,
    half: bool,
    depth: usize,
    layers: Vec<KvCache>,
    table: Option<RopeTable>,
    /// Rows that are stored.
    pub(super) length: usize,
}

impl LayerCaches {
    pub(super) fn new(model: &LanguageModel) -> Self {
        Self {
            attention: model.attention,
            rope: model.rope(),
            half: model.half_cache,
            depth: model.layers.len(),
            layers: Vec::new(),
            table: None,
            length: 0,
        }
    }

    /// Rows that fit.
    pub(super) fn capacity(&self) -> usize {
        self.layers.first().map_or(0, KvCache::capacity)
    }

    /// Makes room for a row at each of `positions` in all, and submits the commands recorded so far.
    ///
    /// # Errors
    /// [Device errors](crate::gpu). The cache is then unchanged.
    pub(super) fn grow(
        &mut self,
        recorder: &mut Recorder,
        positions: impl ExactSizeIterator<Item = usize>,
    ) -> Result<()> {
        let gpu = recorder.gpu().clone();
        let Attention { kv_heads, head_dim, .. } = self.attention;
        let mut layers = Vec::with_capacity(self.depth);
        for layer in 0..self.depth {
            let larger = KvCache::new(&gpu, positions.len(), kv_heads * head_dim, self.half)?;
            if let Some(cache) = self.layers.get(layer) {
                cache.copy_to(recorder, &larger, self.length);
            }
            layers.push(larger);
        }
        let table = RopeTable::at_positions(&gpu, positions, head_dim, &self.rope)?;
        recorder.flush()?;
        (self.layers, self.table) = (layers, Some(table));
        Ok(())
    }

    /// The caches of all layers and the angles, once there is room for a row.
    pub(super) fn parts(&self) -> Result<(&[KvCache], &RopeTable)> {
        let table = self.table.as_ref().ok_or_else(|| Error::Internal("the cache has no capacity".to_owned()))?;
        Ok((&self.layers, table))
    }
}

/// Keys and values of the positions that a language model has processed. It grows as needed.
#[derive(Debug)]
pub struct Cache {
    pub(super) caches: LayerCaches,
    /// The context length of the model: the cache does not grow beyond it in advance.
    context: usize,
    /// The residual stream of a decoding step, [1, hidden].
    pub(super) step_input: Option<Tensor>,
    /// The recorded layers of a decoding step. Growing the caches drops it.
    pub(super) recorded_step: Option<RecordedStep>,
}

/// The layers' dispatches of a decoding step.
#[derive(Debug)]
pub(super) struct RecordedStep {
    pub(super) position: usize,
    pub(super) replay: Replay,
}

impl LanguageModel {
    /// An empty cache.
    pub fn cache(&self) -> Cache {
        Cache {
            caches: LayerCaches::new(self),
            context: self.config.max_positions,
            step_input: None,
            recorded_step: None,
        }
    }
}

impl Cache {
    /// The number of cached positions.
    pub fn length(&self) -> usize {
        self.caches.length
    }

    /// Whether the next decoding steps may be replayed.
    #[doc(hidden)]
    pub fn has_recorded_step(&self) -> bool {
        self.recorded_step.is_some()
    }

    /// Drops all positions from `length` on.
    pub fn truncate(&mut self, length: usize) {
        self.caches.length = self.caches.length.min(length);
    }

    /// Makes room for `positions` positions in all, so that the cache does not have to grow later. If it grows, the
    /// commands recorded so far are submitted.
    ///
    /// # Errors
    /// [Device errors](crate::gpu). The cache is then unchanged.
    pub fn reserve(&mut self, recorder: &mut Recorder, positions: usize) -> Result<()> {
        let capacity = self.caches.capacity();
        if positions <= capacity {
            return Ok(());
        }
        self.recorded_step = None;
        // Growth by half: a long answer copies the cache a few times, not at every step.
        let grown = (capacity + capacity / 2).min(self.context);
        self.caches.grow(recorder, 0..positions.max(grown).next_multiple_of(STEP))
    }
}
