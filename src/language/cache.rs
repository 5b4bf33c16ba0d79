//! The key/value cache of all layers.

use super::LanguageModel;
use crate::gpu::{Recorder, Replay};
use crate::ops::{KvCache, RopeTable};
use crate::tensor::Tensor;
use crate::weights::config::LanguageConfig;
use crate::{Error, Result};

/// The cache grows by at least this many positions.
const STEP: usize = 256;

/// Keys and values of all layers, and the angles of the rows' positions.
#[derive(Debug)]
pub(super) struct LayerCaches {
    config: LanguageConfig,
    half: bool,
    layers: Vec<KvCache>,
    /// One for each of [`LanguageConfig::ropes`].
    tables: Vec<RopeTable>,
    /// Positions that there will be at most, as far as known: they decide about LongRoPE.
    pub(super) positions: usize,
    /// Rows that are stored.
    pub(super) length: usize,
}

impl LayerCaches {
    pub(super) fn new(model: &LanguageModel) -> Self {
        Self {
            config: model.config.clone(),
            half: model.half_cache,
            layers: Vec::new(),
            tables: Vec::new(),
            positions: 0,
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
        positions: impl ExactSizeIterator<Item = usize> + Clone,
    ) -> Result<()> {
        let gpu = recorder.gpu().clone();
        let LanguageConfig { num_layers, num_kv_heads: kv_heads, head_dim, .. } = self.config;
        let mut layers = Vec::with_capacity(num_layers);
        for layer in 0..num_layers {
            let larger = KvCache::new(&gpu, positions.len(), kv_heads * head_dim, self.half)?;
            if let Some(cache) = self.layers.get(layer) {
                cache.copy_to(recorder, &larger, self.length);
            }
            layers.push(larger);
        }
        let ropes = self.config.ropes(self.positions);
        let tables = ropes.iter().map(|rope| RopeTable::at_positions(&gpu, positions.clone(), head_dim, rope));
        let tables = tables.collect::<Result<_>>()?;
        recorder.flush()?;
        (self.layers, self.tables) = (layers, tables);
        Ok(())
    }

    /// Whether sequences of this length have RoPE of their own.
    fn is_long(&self, positions: usize) -> bool {
        self.config.long_rope.as_ref().is_some_and(|long| positions > long.beyond)
    }

    /// The caches of all layers and the angles, once there is room for a row.
    pub(super) fn parts(&self) -> Result<(&[KvCache], &[RopeTable])> {
        if self.tables.is_empty() {
            return Err(Error::Internal("the cache has no capacity".to_owned()));
        }
        Ok((&self.layers, &self.tables))
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

    /// Sets how many positions there will be at most. A model with LongRoPE rotates keys of long sequences otherwise:
    /// if the sequence becomes a long one, all its positions are dropped.
    pub fn expect_length(&mut self, positions: usize) {
        let (long, was_long) = (self.caches.is_long(positions), self.caches.is_long(self.caches.positions));
        if long == was_long || was_long && self.length() > 0 {
            return;
        }
        self.recorded_step = None;
        let caches = &mut self.caches;
        (caches.positions, caches.length) = (positions, 0);
        caches.layers.clear();
        caches.tables.clear();
    }

    /// Makes room for `positions` positions in all, so that the cache does not have to grow later. If it grows, the
    /// commands recorded so far are submitted.
    ///
    /// # Errors
    /// [Device errors](crate::gpu); [`Error::InvalidArgument`] if the sequence becomes a long one of LongRoPE
    /// ([`Self::expect_length`]). The cache is then unchanged.
    pub fn reserve(&mut self, recorder: &mut Recorder, positions: usize) -> Result<()> {
        if self.length() == 0 {
            self.expect_length(positions.max(self.caches.positions));
        }
        if self.caches.is_long(positions) && !self.caches.is_long(self.caches.positions) {
            return Err(Error::InvalidArgument(format!(
                "{positions} positions: keys of a sequence as long are rotated otherwise than those in the cache"
            )));
        }
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
