//! Options of an answer.

use crate::ops::Sampling;

/// How an answer is generated.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct AnswerOptions {
    /// How each token is chosen. Default: [`Sampling::GREEDY`].
    pub sampling: Sampling,
    /// Seed of the sampling. The same seed, prompt and device give the same answer. Default: 0.
    pub seed: u64,
    /// The maximum number of tokens to generate. Default: 512.
    pub max_new_tokens: usize,
    /// Tokens of this answer that another device generated with the same options before it was lost: the answer
    /// continues after them. They count towards [`Self::max_new_tokens`] but raise no event.
    pub resume_from: Vec<u32>,
}

impl AnswerOptions {
    /// Sets [`Self::sampling`].
    pub fn with_sampling(self, sampling: Sampling) -> Self {
        Self { sampling, ..self }
    }

    /// Sets [`Self::seed`].
    pub fn with_seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// Sets [`Self::max_new_tokens`].
    pub fn with_max_new_tokens(self, max_new_tokens: usize) -> Self {
        Self { max_new_tokens, ..self }
    }

    /// Sets [`Self::resume_from`].
    pub fn with_resume_from(self, resume_from: Vec<u32>) -> Self {
        Self { resume_from, ..self }
    }
}

impl Default for AnswerOptions {
    fn default() -> Self {
        Self { sampling: Sampling::GREEDY, seed: 0, max_new_tokens: 512, resume_from: Vec::new() }
    }
}
