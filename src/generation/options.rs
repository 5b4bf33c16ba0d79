//! Options of an answer.

use crate::ops::{FORBID, MAX_TOP_LOGPROBS, Sampling};
use crate::{Error, Result};

/// The most answers to one question.
pub const MAX_CHOICES: usize = 128;
/// The most entries of [`AnswerOptions::logit_bias`].
pub const MAX_BIASES: usize = 1024;

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
    /// Tokens before the answer may end by a stop token or a stop string. Default: 0.
    pub min_tokens: usize,
    /// Strings before whose first occurrence the answer ends, also where several tokens spell one.
    pub stop: Vec<String>,
    /// Further tokens that end an answer.
    pub stop_token_ids: Vec<u32>,
    /// The model's stop tokens do not end an answer. Default: false.
    pub ignore_eos: bool,
    /// Values from -100 to 100 that are added to the logits of tokens; -100 forbids a token. At most [`MAX_BIASES`].
    pub logit_bias: Vec<(u32, f32)>,
    /// Report the log-probability of each token ([`Answer::logprobs`](crate::session::Answer::logprobs)), and of this
    /// many of the likeliest tokens in its place, at most 20. `None` for none.
    pub top_logprobs: Option<usize>,
    /// The number of answers to generate, at most [`MAX_CHOICES`]. Each has its own sequence of random numbers. The
    /// prompt is processed once, then the answers are generated one after the other. The conversation continues with
    /// the first; the others are [`Answer::alternatives`](crate::session::Answer::alternatives). Default: 1.
    pub n: usize,
    /// Tokens that another device generated with the same options before it was lost, of each answer in order: it
    /// continues after them. They count towards [`Self::max_new_tokens`] but raise no event, and have no
    /// log-probabilities.
    pub resume_from: Vec<Vec<u32>>,
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

    /// Sets [`Self::min_tokens`].
    pub fn with_min_tokens(self, min_tokens: usize) -> Self {
        Self { min_tokens, ..self }
    }

    /// Sets [`Self::stop`].
    pub fn with_stop(self, stop: Vec<String>) -> Self {
        Self { stop, ..self }
    }

    /// Sets [`Self::stop_token_ids`].
    pub fn with_stop_token_ids(self, stop_token_ids: Vec<u32>) -> Self {
        Self { stop_token_ids, ..self }
    }

    /// Sets [`Self::ignore_eos`].
    pub fn with_ignore_eos(self, ignore_eos: bool) -> Self {
        Self { ignore_eos, ..self }
    }

    /// Sets [`Self::logit_bias`].
    pub fn with_logit_bias(self, logit_bias: Vec<(u32, f32)>) -> Self {
        Self { logit_bias, ..self }
    }

    /// Sets [`Self::top_logprobs`].
    pub fn with_top_logprobs(self, top_logprobs: Option<usize>) -> Self {
        Self { top_logprobs, ..self }
    }

    /// Sets [`Self::n`].
    pub fn with_n(self, n: usize) -> Self {
        Self { n, ..self }
    }

    /// Sets [`Self::resume_from`].
    pub fn with_resume_from(self, resume_from: Vec<Vec<u32>>) -> Self {
        Self { resume_from, ..self }
    }

    /// Checks every value but those that depend on the prompt. `vocab`: the model's tokens.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] names the first value that is out of range.
    pub fn check(&self, vocab: usize) -> Result<()> {
        self.sampling.check()?;
        let require = |fits: bool, reason: &dyn Fn() -> String| match fits {
            true => Ok(()),
            false => Err(Error::InvalidArgument(reason())),
        };
        let Self { n, min_tokens, max_new_tokens, .. } = *self;
        require((1..=MAX_CHOICES).contains(&n), &|| format!("n is {n}, expected 1 to {MAX_CHOICES} answers"))?;
        require(min_tokens <= max_new_tokens, &|| {
            format!("min_tokens is {min_tokens}, expected at most max_new_tokens, {max_new_tokens}")
        })?;
        require(!self.stop.iter().any(String::is_empty), &|| "a stop string is empty".to_owned())?;
        let top = self.top_logprobs.unwrap_or(0);
        require(top <= MAX_TOP_LOGPROBS, &|| {
            format!("top_logprobs is {top}, expected 0 to {MAX_TOP_LOGPROBS} tokens")
        })?;
        let biases = self.logit_bias.len();
        require(biases <= MAX_BIASES, &|| format!("logit_bias has {biases} tokens, expected at most {MAX_BIASES}"))?;
        for (id, bias) in &self.logit_bias {
            require((*id as usize) < vocab, &|| {
                format!("logit_bias has token {id}, and the model has {vocab} tokens")
            })?;
            require((FORBID..=-FORBID).contains(bias), &|| {
                format!("the logit bias of token {id} is {bias}, expected a number from -100 to 100")
            })?;
        }
        let unknown = self.stop_token_ids.iter().find(|id| **id as usize >= vocab);
        require(unknown.is_none(), &|| {
            format!("stop_token_ids has token {}, and the model has {vocab} tokens", unknown.copied().unwrap_or(0))
        })
    }
}

impl Default for AnswerOptions {
    fn default() -> Self {
        Self {
            sampling: Sampling::GREEDY,
            seed: 0,
            max_new_tokens: 512,
            min_tokens: 0,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            logit_bias: Vec::new(),
            top_logprobs: None,
            n: 1,
            resume_from: Vec::new(),
        }
    }
}
