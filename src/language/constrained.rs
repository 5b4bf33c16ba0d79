//! The constraint of a generated answer, and its mask on the device.

use super::constraint::Constraint;
use crate::gpu::Gpu;
use crate::tensor::Tensor;
use crate::{Error, Result};

/// A constraint of any kind.
pub type AnyConstraint = Box<dyn Constraint>;

/// A constraint, and its mask on the device.
#[derive(Debug)]
pub(super) struct Constrained {
    constraint: AnyConstraint,
    /// [1, vocab / 32 rounded up]
    mask: Tensor,
    words: Vec<u32>,
    vocab: usize,
    /// The token that was chosen last, until the constraint takes it.
    last: Option<u32>,
    tokens: usize,
}

impl Constrained {
    pub(super) fn new(gpu: &Gpu, constraint: AnyConstraint, vocab: usize) -> Result<Self> {
        let words = vec![0; vocab.div_ceil(32)];
        let mask = Tensor::zeros(gpu, &[1, words.len()], "mask of allowed tokens")?;
        Ok(Self { constraint, mask, words, vocab, last: None, tokens: 0 })
    }

    /// Notes the token that was chosen. The caller decides first whether it ends the answer.
    pub(super) fn note(&mut self, id: Option<u32>) {
        self.last = id;
    }

    /// Takes the last token. Returns whether none may follow.
    pub(super) fn take_last(&mut self) -> Result<bool> {
        if let Some(id) = self.last.take() {
            self.constraint.accept(id)?;
            self.tokens += 1;
        }
        Ok(self.constraint.is_terminated())
    }

    /// Whether no token may follow those that were taken.
    pub(super) fn is_terminated(&self) -> bool {
        self.last.is_none() && self.constraint.is_terminated()
    }

    /// Uploads the tokens that may come next, before anything recorded later runs.
    pub(super) fn upload(&mut self, gpu: &Gpu) -> Result<()> {
        self.words.fill(0);
        self.constraint.fill_mask(&mut self.words)?;
        if !(0..self.vocab).any(|id| self.words[id / 32] >> (id % 32) & 1 == 1) {
            let reason = format!("a constraint allows no token after {} of an answer", self.tokens);
            return Err(Error::InvalidArgument(reason));
        }
        self.mask.write(gpu, 0, bytemuck::cast_slice(&self.words));
        Ok(())
    }

    pub(super) fn mask(&self) -> &Tensor {
        &self.mask
    }
}
