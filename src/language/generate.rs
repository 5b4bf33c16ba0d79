//! Token generation, several steps ahead of the host.

use std::collections::VecDeque;
use std::time::Duration;

use web_time::Instant;

use super::{Cache, LanguageModel};
use crate::gpu::{Gpu, Readback, Recorder};
use crate::ops::Sampling;
use crate::tensor::Tensor;
use crate::{Error, Result};

/// Steps that are submitted before the token of the first one is read, so that the device never waits for the host.
/// When an answer ends, the steps submitted after its last token are wasted.
const PIPELINE_DEPTH: usize = 3;
/// The same on a software adapter, where recording competes with the running step for the CPU (measured: 10 % slower
/// with 3).
const PIPELINE_DEPTH_IN_SOFTWARE: usize = 1;

/// Steps that are submitted ahead of the host. Each samples the next token of every sequence.
#[derive(Debug)]
pub(super) struct StepsAhead {
    gpu: Gpu,
    /// The residual stream at the prompts' ends, until the first step uses it.
    ends: Option<Tensor>,
    sequences: usize,
    /// [max_new * sequences] ids
    sampled: Tensor,
    /// Steps to submit before reading.
    depth: usize,
    submitted: usize,
    reading: VecDeque<Readback>,
    /// Time spent recording and submitting.
    host_time: Duration,
}

/// What a step starts from: the residual stream at the prompts' ends, or the tokens sampled last, from a slot on.
pub(super) enum StepInput {
    PromptEnds(Tensor),
    Sampled(usize),
}

impl StepsAhead {
    /// Up to `max_new` steps after the prompts of `sequences`, with the residual stream `ends` at their ends.
    pub(super) fn new(gpu: &Gpu, ends: Tensor, sequences: usize, max_new: usize) -> Result<Self> {
        Ok(Self {
            gpu: gpu.clone(),
            ends: Some(ends),
            sequences,
            sampled: Tensor::zeros(gpu, &[max_new * sequences], "sampled tokens")?,
            depth: if gpu.is_software() { PIPELINE_DEPTH_IN_SOFTWARE } else { PIPELINE_DEPTH },
            submitted: 0,
            host_time: Duration::ZERO,
            reading: VecDeque::with_capacity(PIPELINE_DEPTH),
        })
    }

    /// The next token of each sequence; `None` after the last step. `record` records a step: it writes ids to
    /// `sampled[slot..]`.
    pub(super) async fn next(
        &mut self,
        language: &LanguageModel,
        mut record: impl FnMut(&mut Recorder, StepInput, &Tensor, usize) -> Result<()>,
    ) -> Result<Option<Vec<u32>>> {
        while self.reading.len() < self.depth && self.submitted * self.sequences < self.sampled.len() {
            let started = Instant::now();
            let slot = self.submitted * self.sequences;
            let mut recorder = self.gpu.record();
            let input = match self.ends.take() {
                Some(ends) => StepInput::PromptEnds(ends),
                None => StepInput::Sampled(slot - self.sequences),
            };
            record(&mut recorder, input, &self.sampled, slot)?;
            self.reading.push_back(self.sampled.slice_elements(slot..slot + self.sequences).read_back(&mut recorder));
            recorder.submit()?;
            self.submitted += 1;
            self.host_time += started.elapsed();
        }
        let Some(read) = self.reading.pop_front() else { return Ok(None) };
        let ids: Vec<u32> = read.values().await?;
        match ids.iter().find(|id| **id as usize >= language.config().vocab_size) {
            Some(id) => Err(Error::Gpu(format!(
                "the device sampled token {id}, which is outside the vocabulary: the logits are probably NaN"
            ))),
            None => Ok(Some(ids)),
        }
    }
}

/// Generates tokens after a prompt. A token feeds the next step on the device; the host reads it back asynchronously.
pub struct TokenGenerator<'a> {
    language: &'a LanguageModel,
    cache: &'a mut Cache,
    sampling: Sampling,
    draws: Box<dyn FnMut() -> f32 + 'a>,
    steps: StepsAhead,
}

impl<'a> TokenGenerator<'a> {
    /// Generates up to `max_new` tokens after the prompt in `cache`. `x` is the residual stream at the prompt's end.
    /// `draws` returns uniform numbers in [0, 1), one per token.
    ///
    /// # Errors
    /// [Device errors](crate::gpu).
    pub fn new(
        language: &'a LanguageModel,
        gpu: &Gpu,
        cache: &'a mut Cache,
        x: Tensor,
        max_new: usize,
        sampling: Sampling,
        draws: impl FnMut() -> f32 + 'a,
    ) -> Result<Self> {
        let steps = StepsAhead::new(gpu, x, 1, max_new)?;
        Ok(Self { language, cache, sampling, draws: Box::new(draws), steps })
    }

    /// The next token; `None` after `max_new` of them.
    ///
    /// # Errors
    /// [`Error::Gpu`] if the token id is outside the vocabulary.
    pub async fn next(&mut self) -> Result<Option<u32>> {
        let Self { language, cache, sampling, draws, steps } = self;
        let ids = steps.next(language, |recorder, x, sampled, slot| {
            let x = match x {
                StepInput::PromptEnds(x) => x,
                StepInput::Sampled(last) => language.decode_step(recorder, sampled, last, cache)?,
            };
            language.sample_next(recorder, &x, *sampling, draws(), sampled, slot)
        });
        Ok(ids.await?.and_then(|ids| ids.first().copied()))
    }

    /// Host time spent recording and submitting steps. On software adapters it may include computation.
    pub fn host_time(&self) -> Duration {
        self.steps.host_time
    }

    /// Generated tokens whose keys and values are in the cache after the prompt's, read back or not.
    pub fn cached_tokens(&self) -> usize {
        self.steps.submitted.saturating_sub(1)
    }
}

impl std::fmt::Debug for TokenGenerator<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenGenerator").field("steps", &self.steps).finish_non_exhaustive()
    }
}
