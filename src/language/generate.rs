//! Token generation, several steps ahead of the host.

use std::collections::VecDeque;

use super::{Cache, LanguageModel};
use crate::gpu::{Gpu, Readback};
use crate::ops::Sampling;
use crate::tensor::Tensor;
use crate::{Error, Result};

/// Steps that are submitted before the token of the first one is read, so that the device never waits for the host.
/// When an answer ends, the steps submitted after its last token are wasted.
pub(super) const PIPELINE_DEPTH: usize = 3;
/// The same on a software adapter, where recording competes with the running step for the CPU (measured: 10 % slower
/// with 3).
const PIPELINE_DEPTH_IN_SOFTWARE: usize = 1;

pub(super) fn pipeline_depth(gpu: &Gpu) -> usize {
    if gpu.software_kernels() { PIPELINE_DEPTH_IN_SOFTWARE } else { PIPELINE_DEPTH }
}

/// Generates tokens after a prompt. A token feeds the next step on the device; the host reads it back asynchronously.
pub struct TokenGenerator<'a> {
    language: &'a LanguageModel,
    gpu: Gpu,
    cache: &'a mut Cache,
    sampling: Sampling,
    draws: Box<dyn FnMut() -> f32 + 'a>,
    /// The residual stream at the prompt's end, until the first step uses it.
    prompt_end: Option<Tensor>,
    /// [max_new] ids
    sampled: Tensor,
    /// Steps to submit before reading.
    depth: usize,
    submitted: usize,
    reading: VecDeque<Readback>,
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
        Ok(Self {
            language,
            gpu: gpu.clone(),
            cache,
            sampling,
            draws: Box::new(draws),
            prompt_end: Some(x),
            sampled: Tensor::zeros(gpu, &[max_new], "sampled tokens")?,
            depth: pipeline_depth(gpu),
            submitted: 0,
            reading: VecDeque::with_capacity(PIPELINE_DEPTH),
        })
    }

    /// The next token; `None` after `max_new` of them.
    ///
    /// # Errors
    /// [`Error::Gpu`] if the token id is outside the vocabulary.
    pub async fn next(&mut self) -> Result<Option<u32>> {
        while self.reading.len() < self.depth && self.submitted < self.sampled.len() {
            self.submit()?;
        }
        let Some(read) = self.reading.pop_front() else { return Ok(None) };
        let id = read.values::<u32>().await?.first().copied().unwrap_or(u32::MAX);
        if id as usize >= self.language.config().vocab_size {
            return Err(Error::Gpu(format!(
                "the device sampled token {id}, which is outside the vocabulary: the logits are probably NaN"
            )));
        }
        Ok(Some(id))
    }

    /// Generated tokens whose keys and values are in the cache after the prompt's, read back or not.
    pub fn cached_tokens(&self) -> usize {
        self.submitted.saturating_sub(1)
    }

    fn submit(&mut self) -> Result<()> {
        let slot = self.submitted;
        let mut recorder = self.gpu.record();
        let x = match self.prompt_end.take() {
            Some(x) => x,
            None => {
                let x = self.language.embed_sampled(&mut recorder, &self.sampled, slot - 1, 1)?;
                self.language.forward(&mut recorder, &x, self.cache)?
            }
        };
        let draw = (self.draws)();
        self.language.sample_next(&mut recorder, &x, self.sampling, draw, &self.sampled, slot)?;
        self.reading.push_back(self.sampled.slice_elements(slot..slot + 1).read_back(&mut recorder));
        recorder.submit()?;
        self.submitted += 1;
        Ok(())
    }
}

impl std::fmt::Debug for TokenGenerator<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenGenerator")
            .field("submitted", &self.submitted)
            .field("reading", &self.reading.len())
            .finish()
    }
}
