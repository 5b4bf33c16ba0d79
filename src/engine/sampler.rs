//! The device's part of decoding controls: how often tokens occurred, and log-probabilities.

use super::digest::CachedPosition;
use crate::Result;
use crate::gpu::{Gpu, Readback, Recorder};
use crate::language::{ChosenTokens, RowControls, TokenLogprobs, choose_tokens};
use crate::ops::{self, MAX_TOP_LOGPROBS};
use crate::tensor::Tensor;

/// Chooses tokens for rows of logits, each by its sequence's controls.
#[derive(Debug)]
pub(super) struct Sampler {
    gpu: Gpu,
    vocab: usize,
    seats: usize,
    /// How often each token occurred in the sequence of each seat, [seats, vocab]; `None` until penalties are wanted.
    counts: Option<Tensor>,
    /// The tokens that are allowed to the sequence of each seat, [seats, vocab / 32 rounded up]; `None` until one is
    /// constrained.
    masks: Option<Tensor>,
    /// Room for the log-probabilities of all slots of chosen tokens.
    logprobs: Tensor,
    slots: usize,
}

/// Log-probabilities on their way from the device.
#[derive(Debug)]
pub(super) struct LogprobsRead {
    read: Readback,
    top: usize,
}

impl Sampler {
    /// For as many sequences as there are seats, whose chosen tokens are written to one of `slots` slots.
    pub(super) fn new(gpu: &Gpu, vocab: usize, seats: usize, slots: usize) -> Result<Self> {
        Ok(Self {
            gpu: gpu.clone(),
            vocab,
            seats,
            counts: None,
            masks: None,
            logprobs: Tensor::zeros(gpu, &[slots * ops::logprob_words(MAX_TOP_LOGPROBS)], "log-probabilities")?,
            slots,
        })
    }

    /// Counts the tokens of a sequence that takes a seat, before anything recorded later runs.
    pub(super) fn set_counts(&mut self, seat: usize, prompt: &[CachedPosition], answer: &[u32]) -> Result<()> {
        if self.counts.is_none() {
            self.counts = Some(Tensor::zeros(&self.gpu, &[self.seats, self.vocab], "counts of tokens")?);
        }
        let Some(tensor) = &self.counts else { return Ok(()) };
        let prompt = prompt.iter().filter_map(|position| match position {
            CachedPosition::Text(id) => Some(*id),
            CachedPosition::Visual { .. } => None,
        });
        let counts = ops::token_counts(self.vocab, prompt, answer.iter().copied());
        tensor.write(&self.gpu, (seat * self.vocab * 4) as u64, bytemuck::cast_slice(&counts));
        Ok(())
    }

    /// Uploads the allowed tokens of a sequence, before anything recorded later runs. `mask` has vocab / 32 words.
    pub(super) fn set_mask(&mut self, seat: usize, mask: &[u32]) -> Result<()> {
        if self.masks.is_none() {
            self.masks = Some(Tensor::zeros(&self.gpu, &[self.seats, mask.len()], "masks of allowed tokens")?);
        }
        if let Some(masks) = &self.masks {
            masks.write(&self.gpu, (seat * mask.len() * 4) as u64, bytemuck::cast_slice(mask));
        }
        Ok(())
    }

    /// Records the choice of a token for each row of logits [rows, vocab]. `sampled` receives them, from `slot` on.
    /// `top`: report log-probabilities, and those of this many of the best tokens.
    pub(super) fn record(
        &self,
        recorder: &mut Recorder,
        logits: &Tensor,
        rows: &[RowControls<'_>],
        (sampled, slot): (&Tensor, usize),
        top: Option<usize>,
    ) -> Result<Option<LogprobsRead>> {
        let output = top.map(|top| {
            let words = ops::logprob_words(top);
            (self.logprobs.slice_elements(0..self.slots * words).reshape(&[self.slots, words]), top)
        });
        let logprobs = output.as_ref().map(|(output, top)| (output, *top));
        let chosen = ChosenTokens { sampled, slot, counts: self.counts.as_ref(), masks: self.masks.as_ref(), logprobs };
        choose_tokens(recorder, logits, rows, &chosen)?;
        let rows = slot..slot + rows.len();
        Ok(output.map(|(output, top)| LogprobsRead { read: output.slice_rows(rows).read_back(recorder), top }))
    }
}

impl LogprobsRead {
    /// A row of words for each row of logits.
    pub(super) async fn rows(self) -> Result<Vec<Vec<u32>>> {
        let words: Vec<u32> = self.read.values().await?;
        Ok(words.chunks_exact(ops::logprob_words(self.top)).map(<[u32]>::to_vec).collect())
    }
}

/// The log-probabilities of a token, with the `top` best of them.
pub(super) fn token_logprobs(id: u32, words: &[u32], top: usize) -> Option<TokenLogprobs> {
    TokenLogprobs::from_words(id, words.get(..ops::logprob_words(top))?)
}
