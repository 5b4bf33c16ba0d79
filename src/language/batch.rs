//! Several sequences at a time: every matrix product reads its weights once for all of them.

use std::ops::Range;

use super::LanguageModel;
use super::cache::LayerCaches;
use super::generate::{StepInput, StepsAhead};
use crate::gpu::{Gpu, Recorder};
use crate::ops::{self, AttentionSegment, Sampling, StridedRows};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// The cache is allocated for the prompts and at least this many steps.
const STEPS: usize = 16;

/// Keys and values of sequences with a shared prefix. Rows are stored in the order in which they are computed, so that
/// one matrix product can write those of all sequences: the shared prefix, then the prompts' suffixes one after
/// another, then for every step one row of each sequence. Attention gets the rows of each sequence as segments.
#[derive(Debug)]
pub struct BatchCache {
    caches: LayerCaches,
    /// Rows of the shared prefix.
    shared_prefix: usize,
    /// Rows of the rest of each sequence's prompt; none is empty.
    suffixes: Vec<Range<usize>>,
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
        let capacity = self.caches.capacity();
        if rows <= capacity {
            return Ok(());
        }
        // All prompts at once. Later the capacity grows by half.
        let first = self.generated() + STEPS * self.suffixes.len();
        let capacity = rows.max(first).max(capacity + capacity / 2);
        let positions: Vec<usize> = (0..capacity).map(|row| self.position(row)).collect();
        self.caches.grow(recorder, positions.into_iter())
    }
}

impl LanguageModel {
    /// An empty cache for sequences whose prompts share a prefix of `shared_prefix` positions. `suffixes`: the number
    /// of positions that follow in each prompt.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there is no sequence, or an empty suffix; [`Error::Unsupported`] for a model whose
    /// layers have windows.
    pub fn batch_cache(&self, shared_prefix: usize, suffixes: &[usize]) -> Result<BatchCache> {
        if self.config.other_layers.as_ref().is_some_and(|other| other.window.is_some()) {
            return Err(Error::Unsupported {
                what: "several questions at a time".to_owned(),
                found: format!("{:?}, whose layers have windows", self.config.architecture),
                supported: "models without windows: ask one question at a time".to_owned(),
            });
        }
        if suffixes.is_empty() || suffixes.contains(&0) {
            let lengths = format!("suffixes of {suffixes:?} tokens, expected at least one suffix, none of them empty");
            return Err(Error::InvalidArgument(lengths));
        }
        let ends = suffixes.iter().scan(shared_prefix, |end, length| {
            *end += length;
            Some(*end)
        });
        let mut caches = LayerCaches::new(self);
        // How long answers become is not known.
        caches.positions = self.config.max_positions;
        Ok(BatchCache {
            caches,
            shared_prefix,
            suffixes: ends.zip(suffixes).map(|(end, length)| end - length..end).collect(),
        })
    }

    /// Runs all layers over x [rows, hidden], the next rows of the cache. All of them belong to the shared prefix, or
    /// all to suffixes, or they are one generated token of each sequence. Returns the residual stream after the last
    /// layer (x itself, changed in place).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the rows are of more than one kind.
    pub fn forward_batch(&self, recorder: &mut Recorder, x: &Tensor, cache: &mut BatchCache) -> Result<Tensor> {
        let rows = cache.caches.length..cache.caches.length + x.rows();
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
        let (layers, tables) = cache.caches.parts()?;
        let passes = if rows.end <= cache.shared_prefix { Vec::new() } else { cache.passes(&rows) };
        for (layer, keys_values) in self.layers.iter().zip(layers) {
            match passes.as_slice() {
                [] => layer.forward(recorder, x, tables, keys_values, rows.start)?,
                passes => layer.forward_batch(recorder, x, tables, keys_values, rows.start, passes)?,
            }
        }
        cache.caches.length = rows.end;
        Ok(x.clone())
    }
}

/// Generates the most probable tokens of several sequences, asynchronously like
/// [`TokenGenerator`](super::TokenGenerator).
pub struct BatchGenerator<'a> {
    language: &'a LanguageModel,
    cache: &'a mut BatchCache,
    steps: StepsAhead,
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
        let steps = StepsAhead::new(gpu, ends, cache.suffixes.len(), max_new)?;
        Ok(Self { language, cache, steps })
    }

    /// The next token of each sequence; `None` after `max_new` of them.
    ///
    /// # Errors
    /// [`Error::Gpu`] if a token id is outside the vocabulary.
    pub async fn next(&mut self) -> Result<Option<Vec<u32>>> {
        let Self { language, cache, steps } = self;
        steps
            .next(language, |recorder, x, sampled, slot| {
                let x = match x {
                    StepInput::PromptEnds(ends) => ends,
                    StepInput::Sampled(last) => {
                        let x = language.embed_sampled(recorder, sampled, last, cache.suffixes.len())?;
                        language.forward_batch(recorder, &x, cache)?
                    }
                };
                let logits = language.logits(recorder, &x)?;
                ops::sample(recorder, &logits, Sampling::GREEDY, 0.0, sampled, slot)
            })
            .await
    }
}

impl std::fmt::Debug for BatchGenerator<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BatchGenerator").field("steps", &self.steps).finish_non_exhaustive()
    }
}
