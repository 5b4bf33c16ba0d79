//! What the engine is asked, and what it answers.

use super::digest::{CachedPosition, ImageDigest, Salt};
use crate::ops::Sampling;
use crate::tensor::Tensor;

/// Identifies a job of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u64);

/// A prompt to continue.
#[derive(Debug, Clone)]
pub struct Job {
    /// The prompt.
    pub prompt: Vec<CachedPosition>,
    /// The visual tokens [tokens, hidden] of the images in the prompt.
    pub images: Vec<(ImageDigest, Tensor)>,
    /// Tokens to generate at most, those of `begun` included.
    pub max_new: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Seed of the draws.
    pub seed: u64,
    /// Tokens that end the answer.
    pub stop: Vec<u32>,
    /// Whose cached prefixes it may use.
    pub salt: Salt,
    /// Who asks: users share the device fairly.
    pub user: u64,
    /// Tokens of the answer that exist already, such as those of an answer that a lost device interrupted.
    pub begun: Vec<u32>,
}

impl Job {
    /// The most likely answer of up to `max_new` tokens.
    pub fn new(prompt: Vec<CachedPosition>, max_new: usize) -> Self {
        Self {
            prompt,
            images: Vec::new(),
            max_new,
            sampling: Sampling::GREEDY,
            seed: 0,
            stop: Vec::new(),
            salt: Salt::default(),
            user: 0,
            begun: Vec::new(),
        }
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With one of the job's stop tokens.
    Stop,
    /// It has as many tokens as it may.
    Length,
    /// It was cancelled.
    Cancelled,
}

/// What happened to a job.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Its prompt is being computed. After a preemption it starts again.
    Started {
        /// Positions that were in the cache.
        cached: usize,
    },
    /// A part of the prompt is computed.
    Prefill {
        /// Positions that are.
        done: usize,
        /// Positions in all.
        all: usize,
    },
    /// The next token.
    Token(u32),
    /// There will be no more.
    Done(End),
}
