//! Several sequences at a time: every matrix product reads its weights once for all of them.

use std::collections::VecDeque;
use std::ops::Range;

use super::LanguageModel;
use super::cache::larger;
use super::generate::{PIPELINE_DEPTH, pipeline_depth};
use crate::gpu::{Gpu, Readback, Recorder};
use crate::ops::{self, Attention, AttentionSegment, KvCache, Rope, RopeTable, Sampling, StridedRows};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// The cache is allocated for the prompts and at least this many steps.
const STEPS: usize = 16;

/// Keys and values of sequences with a shared prefix. Rows are stored in the order in which they are computed, so that
/// one matrix product can write those of all sequences: the shared prefix, then the prompts' suffixes one after
/// another, then for every step one row of each sequence. Attention gets the rows of each sequence as segments.
#[derive(Debug)]
pub struct BatchCache {
    attention: Attention,
    rope: Rope,
    half: bool,
    depth: usize,
    /// Rows of the shared prefix.
    shared_prefix: usize,
    /// Rows of the rest of each sequence's prompt; none is empty.
    suffixes: Vec<Range<usize>>,
    layers: Vec<KvCache>,
    table: Option<RopeTable>,
    length: usize,
}

impl BatchCache {
    /// The first row of generated tokens.
    fn generated(&self) -> usize {
        self.suffixes.last().map_or(self.shared_prefix, |suffix| suffix.end)
    }

    /// The position of a row in its sequence.
    fn position(&self, row: usize) -> usize {
        if row < self.shared_prefix {
            return row;
        }
        if let Some(suffix) = self.suffixes.iter().find(|suffix| suffix.contains(&row)) {
            return self.shared_prefix + row - suffix.start;
        }
        let (index, count) = (row - self.generated(), self.suffixes.len());
        self.shared_prefix + self.suffixes[index % count].len() + index / count
    }

    /// The segments that the next rows attend to, by attention pass.
    fn passes(&self, rows: &Range<usize>) -> Vec<Vec<AttentionSegment>> {
        let mut passes = Vec::new();
        if self.shared_prefix > 0 {
            let keys = StridedRows { start: 0, step: 1, count: self.shared_prefix };
            passes.push(vec![AttentionSegment { queries: 0..rows.len(), keys, causal: false }]);
        }
        let generated = self.generated();
        if rows.start < generated {
            let prefilled = self.suffixes.iter().filter(|suffix| suffix.start < rows.end && suffix.end > rows.start);
            let segments = prefilled.map(|suffix| {
                let (start, end) = (suffix.start.max(rows.start), suffix.end.min(rows.end));
                let keys = StridedRows { start: suffix.start, step: 1, count: end - suffix.start };
                AttentionSegment { queries: start - rows.start..end - rows.start, keys, causal: true }
            });
            passes.push(segments.collect());
        } else {
            let one = |(sequence, keys)| AttentionSegment { queries: sequence..sequence + 1, keys, causal: false };
            let suffixes =
                self.suffixes.iter().map(|rows| StridedRows { start: rows.start, step: 1, count: rows.len() });
            let (count, steps) = (self.suffixes.len(), (rows.end - generated) / self.suffixes.len());
            let answers = (0..count).map(|index| StridedRows { start: generated + index, step: count, count: steps });
            passes.push(suffixes.enumerate().map(one).collect());
            passes.push(answers.enumerate().map(one).collect());
        }
        passes
    }

    /// Makes room for `rows` rows in all.
    fn reserve(&mut self, recorder: &mut Recorder, rows: usize) -> Result<()> {
        let capacity = self.layers.first().map_or(0, KvCache::capacity);
        if rows <= capacity {
            return Ok(());
        }
        // All prompts at once. Later the capacity grows by half.
        let first = self.generated() + STEPS * self.suffixes.len();
        let capacity = rows.max(first).max(capacity + capacity / 2);
        let layers = larger(recorder, &self.layers, self.depth, self.length, &self.attention, capacity, self.half)?;
        let gpu = recorder.gpu().clone();
        let positions = (0..capacity).map(|row| self.position(row));
        let table = RopeTable::at_positions(&gpu, positions, self.attention.head_dim, &self.rope)?;
        recorder.flush()?;
        self.layers = layers;
        self.table = Some(table);
        Ok(())
    }
}

impl LanguageModel {
    /// An empty cache for sequences whose prompts share a prefix of `shared_prefix` positions. `suffixes`: the number
    /// of positions that follow in each prompt.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there is no sequence, or an empty suffix.
    pub fn batch_cache(&self, shared_prefix: usize, suffixes: &[usize]) -> Result<BatchCache> {
        if suffixes.is_empty() || suffixes.contains(&0) {
            let lengths = format!("suffixes of {suffixes:?} tokens, expected at least one suffix, none of them empty");
            return Err(Error::InvalidArgument(lengths));
        }
        let ends = suffixes.iter().scan(shared_prefix, |end, length| {
            *end += length;
            Some(*end)
        });
        Ok(BatchCache {
            attention: self.attention,
            rope: Rope { theta: self.config.rope_theta, freq_factors: self.config.rope_freq_factors.clone() },
            half: self.half_cache,
            depth: self.layers.len(),
            shared_prefix,
            suffixes: ends.zip(suffixes).map(|(end, length)| end - length..end).collect(),
            layers: Vec::new(),
            table: None,
            length: 0,
        })
    }

    /// Runs all layers over x [rows, hidden], the next rows of the cache. All of them belong to the shared prefix, or
    /// all to suffixes, or they are one generated token of each sequence. Returns the residual stream after the last
    /// layer (x itself, changed in place).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the rows are of more than one kind.
    pub fn forward_batch(&self, recorder: &mut Recorder, x: &Tensor, cache: &mut BatchCache) -> Result<Tensor> {
        let rows = cache.length..cache.length + x.rows();
        let generated = cache.generated();
        let one_kind = rows.end <= cache.shared_prefix
            || rows.start >= cache.shared_prefix && rows.end <= generated
            || rows.start >= generated && rows.len() == cache.suffixes.len();
        if !one_kind {
            return Err(Error::InvalidArgument(format!(
                "rows {rows:?} of a batch, expected rows of the shared prefix, of suffixes, or of one step"
            )));
        }
        cache.reserve(recorder, rows.end)?;
        let Some(table) = cache.table.clone() else {
            return Err(Error::Internal("the cache has no capacity".to_owned()));
        };
        if rows.end <= cache.shared_prefix {
            for (layer, keys_values) in self.layers.iter().zip(&cache.layers) {
                layer.forward(recorder, x, &table, keys_values, rows.start)?;
            }
        } else {
            let passes = cache.passes(&rows);
            for (layer, keys_values) in self.layers.iter().zip(&cache.layers) {
                layer.forward_batch(recorder, x, &table, keys_values, rows.start, &passes)?;
            }
        }
        cache.length = rows.end;
        Ok(x.clone())
    }
}

/// Generates the most probable tokens of several sequences, asynchronously like
/// [`TokenGenerator`](super::TokenGenerator).
pub struct BatchGenerator<'a> {
    language: &'a LanguageModel,
    gpu: Gpu,
    cache: &'a mut BatchCache,
    /// The residual stream at the prompts' ends, until the first step uses it.
    ends: Option<Tensor>,
    /// [max_new * sequences] ids
    sampled: Tensor,
    max_new: usize,
    depth: usize,
    submitted: usize,
    reading: VecDeque<Readback>,
}

impl<'a> BatchGenerator<'a> {
    /// Generates up to `max_new` tokens after the prompts in `cache`. `ends` [sequences, hidden] is the residual stream
    /// at their last positions.
    ///
    /// # Errors
    /// [`Error::WrongShape`] for another shape of `ends`.
    pub fn new(
        language: &'a LanguageModel,
        gpu: &Gpu,
        cache: &'a mut BatchCache,
        ends: Tensor,
        max_new: usize,
    ) -> Result<Self> {
        ends.expect("the ends of prompts", &[cache.suffixes.len(), language.config.hidden_size])?;
        Ok(Self {
            language,
            gpu: gpu.clone(),
            sampled: Tensor::zeros(gpu, &[max_new * cache.suffixes.len()], "sampled tokens")?,
            cache,
            ends: Some(ends),
            max_new,
            depth: pipeline_depth(gpu),
            submitted: 0,
            reading: VecDeque::with_capacity(PIPELINE_DEPTH),
        })
    }

    /// The next token of each sequence; `None` after `max_new` of them.
    ///
    /// # Errors
    /// [`Error::Gpu`] if a token id is outside the vocabulary.
    pub async fn next(&mut self) -> Result<Option<Vec<u32>>> {
        while self.reading.len() < self.depth && self.submitted < self.max_new {
            self.submit()?;
        }
        let Some(read) = self.reading.pop_front() else { return Ok(None) };
        let ids: Vec<u32> = read.values().await?;
        match ids.iter().find(|id| **id as usize >= self.language.config.vocab_size) {
            Some(id) => Err(Error::Gpu(format!(
                "the device sampled token {id}, which is outside the vocabulary: the logits are probably NaN"
            ))),
            None => Ok(Some(ids)),
        }
    }

    fn submit(&mut self) -> Result<()> {
        let count = self.cache.suffixes.len();
        let slot = self.submitted * count;
        let mut recorder = self.gpu.record();
        let x = match self.ends.take() {
            Some(ends) => ends,
            None => {
                let x = self.language.embed_sampled(&mut recorder, &self.sampled, slot - count, count)?;
                self.language.forward_batch(&mut recorder, &x, self.cache)?
            }
        };
        let logits = self.language.logits(&mut recorder, &x)?;
        ops::sample(&mut recorder, &logits, Sampling::GREEDY, 0.0, &self.sampled, slot)?;
        self.reading.push_back(self.sampled.slice_elements(slot..slot + count).read_back(&mut recorder));
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
