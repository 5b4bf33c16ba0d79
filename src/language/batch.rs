//! Several sequences at a time: every product reads its weights once for all of them.

use std::collections::VecDeque;
use std::ops::Range;

use super::LanguageModel;
use super::cache::larger;
use super::generate::{AHEAD, AHEAD_IN_SOFTWARE};
use crate::gpu::{Gpu, Readback, Recorder};
use crate::ops::{self, Attention, AttentionSegment, KvCache, Rope, RopeTable, Sampling, StridedRows};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// The cache has room for at least this many steps more when it grows.
const STEPS: usize = 16;

/// Keys and values of sequences that begin alike. Rows are in the order in which they come, so that a product can write
/// those of all sequences: the common beginning, then what the prompts have of their own, one behind the other, then at every
/// step a row of each sequence. Where a sequence's rows lie is known, and attention looks there.
#[derive(Debug)]
pub struct BatchCache {
    attention: Attention,
    rotary: Rope,
    half: bool,
    depth: usize,
    /// Rows of the common beginning.
    common: usize,
    /// Rows of each sequence's own part of its prompt; none is empty.
    own: Vec<Range<usize>>,
    layers: Vec<KvCache>,
    table: Option<RopeTable>,
    length: usize,
}

impl BatchCache {
    /// The first row of the steps.
    fn steps(&self) -> usize {
        self.own.last().map_or(self.common, |own| own.end)
    }

    /// The position, in its sequence, of what a row holds.
    fn position(&self, row: usize) -> usize {
        if row < self.common {
            return row;
        }
        if let Some(own) = self.own.iter().find(|own| own.contains(&row)) {
            return self.common + row - own.start;
        }
        let (step, sequence) = ((row - self.steps()) / self.own.len(), (row - self.steps()) % self.own.len());
        self.common + self.own[sequence].len() + step
    }

    /// What these rows, the next ones, attend to beside each other.
    fn sets(&self, rows: &Range<usize>) -> Vec<Vec<AttentionSegment>> {
        let mut sets = Vec::new();
        if self.common > 0 {
            let keys = StridedRows { start: 0, step: 1, count: self.common };
            sets.push(vec![AttentionSegment { queries: 0..rows.len(), keys, causal: false }]);
        }
        let steps = self.steps();
        if rows.start < steps {
            let own = self.own.iter().filter(|own| own.start < rows.end && own.end > rows.start).map(|own| {
                let (start, end) = (own.start.max(rows.start), own.end.min(rows.end));
                let keys = StridedRows { start: own.start, step: 1, count: end - own.start };
                AttentionSegment { queries: start - rows.start..end - rows.start, keys, causal: true }
            });
            sets.push(own.collect());
        } else {
            let one = |(sequence, keys)| AttentionSegment { queries: sequence..sequence + 1, keys, causal: false };
            let own = self.own.iter().map(|own| StridedRows { start: own.start, step: 1, count: own.len() });
            let (count, done) = (self.own.len(), (rows.end - steps) / self.own.len());
            let since = (0..count).map(|sequence| StridedRows { start: steps + sequence, step: count, count: done });
            sets.push(own.enumerate().map(one).collect());
            sets.push(since.enumerate().map(one).collect());
        }
        sets
    }

    /// Makes room for so many rows.
    fn reserve(&mut self, recorder: &mut Recorder, rows: usize) -> Result<()> {
        let capacity = self.layers.first().map_or(0, KvCache::capacity);
        if rows <= capacity {
            return Ok(());
        }
        // All of the prompts at once, and steps by halves as much again.
        let prompts = self.steps() + STEPS * self.own.len();
        let capacity = rows.max(prompts).max(capacity + capacity / 2);
        let layers = larger(recorder, &self.layers, self.depth, self.length, &self.attention, capacity, self.half)?;
        let gpu = recorder.gpu().clone();
        let positions = (0..capacity).map(|row| self.position(row));
        let table = RopeTable::at_positions(&gpu, positions, self.attention.head_dim, &self.rotary)?;
        recorder.flush()?;
        self.layers = layers;
        self.table = Some(table);
        Ok(())
    }
}

impl LanguageModel {
    /// An empty cache for sequences whose prompts have `common` positions in common and then so many of their own each.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there is no sequence, or one without a position of its own.
    pub fn batch_cache(&self, common: usize, own: &[usize]) -> Result<BatchCache> {
        if own.is_empty() || own.contains(&0) {
            return Err(Error::InvalidArgument("every sequence of a batch has a position of its own".to_owned()));
        }
        let ends = own.iter().scan(common, |end, length| {
            *end += length;
            Some(*end)
        });
        Ok(BatchCache {
            attention: self.attention,
            rotary: Rope { theta: self.config.rope_theta, freq_factors: self.config.rope_freq_factors.clone() },
            half: self.half_cache,
            depth: self.layers.len(),
            common,
            own: ends.zip(own).map(|(end, length)| end - length..end).collect(),
            layers: Vec::new(),
            table: None,
            length: 0,
        })
    }

    /// Runs all layers over x [rows, hidden], the next rows of the cache: of the common beginning, or of the prompts' own parts
    /// (of one or several), or one of each sequence. Gives the residual stream behind the last layer (x itself, changed in
    /// place).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the rows are of more than one of these.
    pub fn forward_batch(&self, recorder: &mut Recorder, x: &Tensor, cache: &mut BatchCache) -> Result<Tensor> {
        let rows = cache.length..cache.length + x.rows();
        let steps = cache.steps();
        let one_kind = rows.end <= cache.common
            || rows.start >= cache.common && rows.end <= steps
            || rows.start >= steps && rows.len() == cache.own.len();
        if !one_kind {
            return Err(Error::InvalidArgument(format!("rows {rows:?} of a batch are not all of one part of it")));
        }
        cache.reserve(recorder, rows.end)?;
        let Some(table) = cache.table.clone() else {
            return Err(Error::Internal("the cache has no room yet".to_owned()));
        };
        if rows.end <= cache.common {
            for (layer, keys_values) in self.layers.iter().zip(&cache.layers) {
                layer.forward(recorder, x, &table, keys_values, rows.start)?;
            }
        } else {
            let sets = cache.sets(&rows);
            for (layer, keys_values) in self.layers.iter().zip(&cache.layers) {
                layer.forward_batch(recorder, x, &table, keys_values, rows.start, &sets)?;
            }
        }
        cache.length = rows.end;
        Ok(x.clone())
    }
}

/// The likeliest tokens of several sequences, without waiting for any, as [`TokenGenerator`](super::TokenGenerator) does.
pub struct BatchGenerator<'a> {
    language: &'a LanguageModel,
    gpu: Gpu,
    cache: &'a mut BatchCache,
    /// The prompts' ends, until the first step has used them.
    ends: Option<Tensor>,
    /// [room * sequences] ids
    chosen: Tensor,
    room: usize,
    ahead: usize,
    submitted: usize,
    reading: VecDeque<Readback>,
}

impl<'a> BatchGenerator<'a> {
    /// Generates up to `room` tokens after the prompts that `cache` holds; `ends` [sequences, hidden] is the residual stream of
    /// their last positions.
    pub fn new(
        language: &'a LanguageModel,
        gpu: &Gpu,
        cache: &'a mut BatchCache,
        ends: Tensor,
        room: usize,
    ) -> Result<Self> {
        ends.expect("the ends of prompts", &[cache.own.len(), language.config.hidden_size])?;
        Ok(Self {
            language,
            gpu: gpu.clone(),
            chosen: Tensor::zeros(gpu, &[room * cache.own.len()], "chosen tokens")?,
            cache,
            ends: Some(ends),
            room,
            ahead: if gpu.software_kernels() { AHEAD_IN_SOFTWARE } else { AHEAD },
            submitted: 0,
            reading: VecDeque::with_capacity(AHEAD),
        })
    }

    /// The next token of each sequence; `None` when there is no more room.
    pub async fn next(&mut self) -> Result<Option<Vec<u32>>> {
        while self.reading.len() < self.ahead && self.submitted < self.room {
            self.submit()?;
        }
        let Some(read) = self.reading.pop_front() else { return Ok(None) };
        let ids: Vec<u32> = read.values().await?;
        match ids.iter().find(|id| **id as usize >= self.language.config.vocab_size) {
            Some(id) => Err(Error::Gpu(format!("the device chose token {id}: its logits are not numbers"))),
            None => Ok(Some(ids)),
        }
    }

    fn submit(&mut self) -> Result<()> {
        let count = self.cache.own.len();
        let place = self.submitted * count;
        let mut recorder = self.gpu.record();
        let x = match self.ends.take() {
            Some(ends) => ends,
            None => {
                let x = self.language.embed_sampled(&mut recorder, &self.chosen, place - count, count)?;
                self.language.forward_batch(&mut recorder, &x, self.cache)?
            }
        };
        let logits = self.language.logits(&mut recorder, &x)?;
        ops::sample(&mut recorder, &logits, Sampling::GREEDY, 0.0, &self.chosen, place)?;
        self.reading.push_back(self.chosen.slice_elements(place..place + count).read_back(&mut recorder));
        recorder.submit()?;
        self.submitted += 1;
        Ok(())
    }
}

impl std::fmt::Debug for BatchGenerator<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BatchGenerator")
            .field("submitted", &self.submitted)
            .field("reading", &self.reading.len())
            .finish()
    }
}
