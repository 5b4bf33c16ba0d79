//! Token generation, several steps ahead of the host.

use std::collections::VecDeque;
use std::time::Duration;

use web_time::Instant;

use super::choose::{ChosenTokens, RowControls, choose_tokens};
use super::constrained::{AnyConstraint, Constrained};
use super::{Cache, LanguageModel};
use crate::gpu::{Gpu, Readback, Recorder};
use crate::ops::{self, Sampling};
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
    /// [max_new * sequences, words] log-probabilities, if they are wanted: [`ops::logprobs`].
    logprobs: Option<Tensor>,
    /// Those of the ids that were read last.
    last_logprobs: Vec<u32>,
    /// Steps to submit before reading.
    depth: usize,
    submitted: usize,
    reading: VecDeque<(Readback, Option<Readback>)>,
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
            logprobs: None,
            last_logprobs: Vec::new(),
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
            let slots = slot..slot + self.sequences;
            let ids = self.sampled.slice_elements(slots.clone()).read_back(&mut recorder);
            let logprobs = self.logprobs.as_ref().map(|output| output.slice_rows(slots).read_back(&mut recorder));
            self.reading.push_back((ids, logprobs));
            recorder.submit()?;
            self.submitted += 1;
            self.host_time += started.elapsed();
        }
        let Some((read, logprobs)) = self.reading.pop_front() else { return Ok(None) };
        let ids: Vec<u32> = read.values().await?;
        if let Some(logprobs) = logprobs {
            self.last_logprobs = logprobs.values().await?;
        }
        match ids.iter().find(|id| **id as usize >= language.config().vocab_size) {
            Some(id) => Err(Error::Gpu(format!(
                "the device sampled token {id}, which is outside the vocabulary: the logits are probably NaN"
            ))),
            None => Ok(Some(ids)),
        }
    }
}

/// A token and its log-probability.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct TokenLogprob {
    /// The token.
    pub id: u32,
    /// The natural logarithm of its probability: log-softmax of the model's logits, before bias, penalties, masks and
    /// temperature.
    pub logprob: f32,
}

/// The log-probabilities of a generated token and of the likeliest ones in its place.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TokenLogprobs {
    /// The generated token.
    pub chosen: TokenLogprob,
    /// The likeliest tokens, best first.
    pub top: Vec<TokenLogprob>,
}

impl TokenLogprobs {
    /// Those of the token `id`, from a row of the output of [`ops::logprobs`]. `None` if it is empty.
    pub(crate) fn from_words(id: u32, words: &[u32]) -> Option<Self> {
        let (chosen, top) = words.split_first()?;
        let top = top.chunks_exact(2).filter(|pair| pair[0] != u32::MAX);
        let top = top.map(|pair| TokenLogprob { id: pair[0], logprob: f32::from_bits(pair[1]) });
        let chosen = TokenLogprob { id, logprob: f32::from_bits(*chosen) };
        Some(Self { chosen, top: top.collect() })
    }
}

/// What changes logits before a token is chosen, besides [`Sampling`], and what is reported about them.
#[derive(Debug, Clone, Default)]
pub struct LogitControls {
    /// Values that are added to the logits of tokens; [`ops::FORBID`] or less forbids a token.
    pub bias: Vec<(u32, f32)>,
    /// Tokens that are forbidden in the first [`Self::min_tokens`] steps.
    pub ends: Vec<u32>,
    /// Steps before the first that may choose one of [`Self::ends`].
    pub min_tokens: usize,
    /// How often tokens occurred ([`ops::token_counts`]). Needed for penalties.
    pub counts: Option<Vec<u32>>,
    /// Report log-probabilities, of this many best tokens too.
    pub top_logprobs: Option<usize>,
}

/// [`LogitControls`] on the device.
#[derive(Default)]
struct Controls {
    controls: LogitControls,
    /// [1, vocab]
    counts: Option<Tensor>,
}

impl Controls {
    /// Records the choice of the token for `slot` from logits [1, vocab]. `masks`: the tokens that may be chosen.
    fn sample(
        &self,
        recorder: &mut Recorder,
        logits: &Tensor,
        (sampling, draw): (Sampling, f32),
        masks: Option<&Tensor>,
        (sampled, logprobs, slot): (&Tensor, Option<&Tensor>, usize),
    ) -> Result<()> {
        let LogitControls { bias, ends, min_tokens, top_logprobs, .. } = &self.controls;
        let forbidden = if slot < *min_tokens { ends.as_slice() } else { &[] };
        let counts = self.counts.as_ref().map(|_| 0);
        let row = RowControls { sampling, draw, bias, forbidden, counts, mask: masks.map(|_| 0) };
        let logprobs = logprobs.zip(*top_logprobs);
        let chosen = ChosenTokens { sampled, slot, counts: self.counts.as_ref(), masks, logprobs };
        choose_tokens(recorder, logits, &[row], &chosen)
    }
}

/// Generates tokens after a prompt. A token feeds the next step on the device; the host reads it back asynchronously.
pub struct TokenGenerator<'a> {
    language: &'a LanguageModel,
    cache: &'a mut Cache,
    sampling: Sampling,
    draws: Box<dyn FnMut() -> f32 + 'a>,
    controls: Option<Controls>,
    constraint: Option<Constrained>,
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
        Ok(Self { language, cache, sampling, draws: Box::new(draws), controls: None, constraint: None, steps })
    }

    /// Sets logit bias, penalties and log-probabilities. Without any of them, no kernel of theirs runs.
    ///
    /// # Errors
    /// [Device errors](crate::gpu); [`Error::InvalidArgument`] for counts of another vocabulary.
    pub fn with_controls(mut self, controls: LogitControls) -> Result<Self> {
        let (gpu, vocab) = (&self.steps.gpu, self.language.config().vocab_size);
        let counts = controls.counts.as_deref().map(|counts| {
            if counts.len() != vocab {
                let reason = format!("counts of {} tokens, expected {vocab}", counts.len());
                return Err(Error::InvalidArgument(reason));
            }
            let tensor = Tensor::zeros(gpu, &[1, vocab], "counts of tokens")?;
            tensor.write(gpu, 0, bytemuck::cast_slice(counts));
            Ok(tensor)
        });
        let counts = counts.transpose()?;
        if let Some(top) = controls.top_logprobs {
            let shape = [self.steps.sampled.len(), ops::logprob_words(top)];
            self.steps.logprobs = Some(Tensor::zeros(gpu, &shape, "log-probabilities")?);
        }
        let is_needed = counts.is_some()
            || !controls.bias.is_empty()
            || controls.min_tokens > 0 && !controls.ends.is_empty()
            || controls.top_logprobs.is_some();
        self.controls = is_needed.then_some(Controls { controls, counts });
        Ok(self)
    }

    /// Sets what the tokens may be, `resumed` of the answer included, which the prompt ends with. Then a step begins
    /// after the token before it was read: the layers run while the host computes what may come next.
    ///
    /// # Errors
    /// [Device errors](crate::gpu); those of the constraint.
    pub fn with_constraint(mut self, constraint: AnyConstraint, resumed: &[u32]) -> Result<Self> {
        let mut constrained = Constrained::new(&self.steps.gpu, constraint, self.language.config().vocab_size)?;
        for id in resumed {
            constrained.note(Some(*id));
            constrained.take_last()?;
        }
        self.constraint = Some(constrained);
        self.steps.depth = 1;
        self.controls = Some(self.controls.unwrap_or_default());
        Ok(self)
    }

    /// Whether the constraint ended the answer.
    pub fn is_terminated(&self) -> bool {
        self.constraint.as_ref().is_some_and(Constrained::is_terminated)
    }

    /// The next token; `None` after `max_new` of them, or if the constraint allows none.
    ///
    /// # Errors
    /// [`Error::Gpu`] if the token id is outside the vocabulary; those of the constraint.
    pub async fn next(&mut self) -> Result<Option<u32>> {
        let Self { language, cache, sampling, draws, controls, constraint, steps } = self;
        if let Some(constraint) = constraint
            && constraint.take_last()?
        {
            return Ok(None);
        }
        let (logprobs, gpu) = (steps.logprobs.clone(), steps.gpu.clone());
        let ids = steps.next(language, |recorder, x, sampled, slot| {
            let x = match x {
                StepInput::PromptEnds(x) => x,
                StepInput::Sampled(last) => language.decode_step(recorder, sampled, last, cache)?,
            };
            let Some(controls) = controls else {
                return language.sample_next(recorder, &x, *sampling, draws(), sampled, slot);
            };
            let logits = language.last_logits(recorder, &x)?;
            if let Some(constraint) = constraint {
                std::mem::replace(recorder, gpu.record()).submit()?;
                constraint.upload(&gpu)?;
            }
            let masks = constraint.as_ref().map(Constrained::mask);
            controls.sample(recorder, &logits, (*sampling, draws()), masks, (sampled, logprobs.as_ref(), slot))
        });
        let id = ids.await?.and_then(|ids| ids.first().copied());
        if let Some(constraint) = constraint {
            constraint.note(id);
        }
        Ok(id)
    }

    /// The log-probabilities of the token `id` that [`Self::next`] returned last. `None` if they were not asked for
    /// ([`LogitControls::top_logprobs`]).
    pub fn logprobs(&self, id: u32) -> Option<TokenLogprobs> {
        TokenLogprobs::from_words(id, &self.steps.last_logprobs)
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
