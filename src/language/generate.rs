//! Token after token, without waiting for any.

use std::collections::VecDeque;

use super::{Cache, LanguageModel};
use crate::gpu::{Gpu, Readback};
use crate::ops::Sampling;
use crate::tensor::Tensor;
use crate::{Error, Result};

/// Steps that are submitted before the first of their tokens is read. The device always has the next one at hand; as many
/// are done in vain when an answer ends.
pub(super) const AHEAD: usize = 3;
/// The same where the device is the CPU: recording a step takes time from the one that runs (measured: 10 % slower with 3).
pub(super) const AHEAD_IN_SOFTWARE: usize = 1;

/// Generates tokens after a prompt. A token stays on the device and feeds the next step there; the host reads it behind.
pub struct TokenGenerator<'a> {
    language: &'a LanguageModel,
    gpu: Gpu,
    cache: &'a mut Cache,
    sampling: Sampling,
    draws: Box<dyn FnMut() -> f32 + 'a>,
    /// The prompt's end, until the first step has used it.
    prompt_end: Option<Tensor>,
    /// [room] ids
    chosen: Tensor,
    /// Steps to have submitted.
    ahead: usize,
    submitted: usize,
    reading: VecDeque<Readback>,
}

impl<'a> TokenGenerator<'a> {
    /// Generates up to `room` tokens after `x`, the residual stream of the prompt's end, that `cache` holds. `draws` gives
    /// uniform numbers in [0, 1), one a token.
    pub fn new(
        language: &'a LanguageModel,
        gpu: &Gpu,
        cache: &'a mut Cache,
        x: Tensor,
        room: usize,
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
            chosen: Tensor::zeros(gpu, &[room], "chosen tokens")?,
            ahead: if gpu.software_kernels() { AHEAD_IN_SOFTWARE } else { AHEAD },
            submitted: 0,
            reading: VecDeque::with_capacity(AHEAD),
        })
    }

    /// The next token; `None` when there is no more room.
    pub async fn next(&mut self) -> Result<Option<u32>> {
        while self.reading.len() < self.ahead && self.submitted < self.chosen.len() {
            self.submit()?;
        }
        let Some(read) = self.reading.pop_front() else { return Ok(None) };
        let id = read.values::<u32>().await?.first().copied().unwrap_or(u32::MAX);
        if id as usize >= self.language.config().vocab_size {
            return Err(Error::Gpu(format!("the device chose token {id}: its logits are not numbers")));
        }
        Ok(Some(id))
    }

    /// Tokens whose keys and values are in the cache behind the prompt's, read or not.
    pub fn cached_tokens(&self) -> usize {
        self.submitted.saturating_sub(1)
    }

    fn submit(&mut self) -> Result<()> {
        let place = self.submitted;
        let mut recorder = self.gpu.record();
        let x = match self.prompt_end.take() {
            Some(x) => x,
            None => {
                let x = self.language.embed_sampled(&mut recorder, &self.chosen, place - 1, 1)?;
                self.language.forward(&mut recorder, &x, self.cache)?
            }
        };
        let draw = (self.draws)();
        self.language.sample_next(&mut recorder, &x, self.sampling, draw, &self.chosen, place)?;
        self.reading.push_back(self.chosen.slice_elements(place..place + 1).read_back(&mut recorder));
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
