//! What the engine is asked, and what it answers.

use std::time::Duration;

use super::digest::{CachedPosition, Salt};
use super::images::JobImage;
use crate::Error;
use crate::generation::{AnswerOptions, FinishReason, StopReason};
use crate::language::{Constraint, TokenLogprobs};

/// Identifies a job of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u64);

/// A prompt to continue, once or several times.
#[derive(Debug, Clone)]
pub struct Job {
    /// The prompt.
    pub prompt: Vec<CachedPosition>,
    /// The images in the prompt.
    pub images: Vec<JobImage>,
    /// How answers are generated, as in a conversation. [`AnswerOptions::n`] answers are generated at once, at
    /// most [`EngineOptions::parallel`](super::EngineOptions::parallel): they share the prompt's blocks.
    /// [`AnswerOptions::resume_from`] has the tokens of answers that exist already, such as those that a lost device
    /// interrupted; they raise no event.
    pub options: AnswerOptions,
    /// What answers may be, before their first token. Each has a copy of its own.
    pub constraint: Option<Box<dyn Constraint>>,
    /// Whose cached prefixes and visual tokens it may use.
    pub salt: Salt,
    /// Who asks: users share the device fairly.
    pub user: u64,
}

impl Job {
    /// The most likely answer of up to `max_new` tokens.
    pub fn new(prompt: Vec<CachedPosition>, max_new: usize) -> Self {
        Self {
            prompt,
            images: Vec::new(),
            options: AnswerOptions::default().with_max_new_tokens(max_new),
            constraint: None,
            salt: Salt::default(),
            user: 0,
        }
    }
}

/// Numbers of tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Positions of the prompt, visual tokens included.
    pub prompt: usize,
    /// Positions of the prompt that were in the cache.
    pub cached: usize,
    /// Tokens of the answer, those that were resumed included.
    pub generated: usize,
}

/// Where an answer's time went. Answers to one job share the first two.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// From its submission to its admission.
    pub queued: Duration,
    /// From its admission to the first token.
    pub prefill: Duration,
    /// From the first token to the end.
    pub decode: Duration,
}

/// What happened to a job.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Its prompt is being computed. After a preemption, one of its answers starts again.
    Started {
        /// Positions that were in the cache. Those that others compute meanwhile are counted by [`Usage`] only.
        cached: usize,
    },
    /// A part of the images that the prompt needs and that were not cached is encoded.
    Encoding {
        /// Stages that are done.
        done: usize,
        /// Stages of all those images.
        all: usize,
    },
    /// A part of the prompt is computed.
    Prefill {
        /// Positions that are.
        done: usize,
        /// Positions in all.
        all: usize,
    },
    /// More of an answer.
    Delta {
        /// Which answer, from 0.
        choice: usize,
        /// The next tokens: one or more, or none where text was held back to the end.
        ids: Vec<u32>,
        /// The text that is certain now: whole characters, without special tokens and what may become a stop string.
        /// Empty if the engine has no tokenizer ([`Engine::with_text`](super::Engine::with_text)).
        text: String,
        /// The log-probabilities of `ids`, if they are wanted ([`AnswerOptions::top_logprobs`]).
        logprobs: Vec<TokenLogprobs>,
    },
    /// There will be no more of an answer.
    Done {
        /// Which answer, from 0.
        choice: usize,
        /// Why.
        reason: FinishReason,
        /// What ended it, if the caller asked for it.
        stop_reason: Option<StopReason>,
        /// Numbers of tokens.
        usage: Usage,
        /// Where its time went.
        timings: Timings,
    },
    /// An answer cannot be continued; other jobs can.
    Failed {
        /// Which answer, from 0.
        choice: usize,
        /// Why.
        error: Error,
    },
}
