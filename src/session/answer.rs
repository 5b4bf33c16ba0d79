//! Answers and the events on the way to them.

use std::fmt::{self, Display};
use std::ops::ControlFlow;

use crate::generation::{FinishReason, StopReason};
use crate::language::TokenLogprobs;

/// What happens while an answer is generated.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The oldest turns were dropped to make room for the question.
    DroppedTurns {
        /// How many.
        count: usize,
    },
    /// An image is being encoded.
    EncodingImage {
        /// Steps done.
        done: usize,
        /// All steps of this image.
        total: usize,
    },
    /// The prompt is being processed.
    Prefill {
        /// Positions done.
        done: usize,
        /// Positions that are not cached from earlier turns.
        total: usize,
    },
    /// Another answer to the same question begins ([`AnswerOptions::n`](super::AnswerOptions::n)): the following tokens
    /// are its own.
    Choice {
        /// Its number, from 1: the first answer has no such event.
        index: usize,
    },
    /// The next token of the answer.
    Token {
        /// Its id.
        id: u32,
    },
    /// The log-probabilities of the token of the last event, if they are wanted.
    Logprobs {
        /// The log-probabilities.
        logprobs: &'a TokenLogprobs,
    },
    /// The next part of the answer's text, in whole characters.
    Text {
        /// The text.
        text: &'a str,
    },
}

/// Receives events. [`ControlFlow::Break`] stops the work: an answer ends where it is, anything else fails with
/// [`Error::Cancelled`](crate::Error::Cancelled).
pub type OnEvent<'a> = &'a mut dyn FnMut(Event<'_>) -> ControlFlow<()>;

/// One of several answers to a question.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Choice {
    /// Generated ids, as in [`Answer::token_ids`].
    pub token_ids: Vec<u32>,
    /// The text, as in [`Answer::text`].
    pub text: String,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// What ended it, if the caller asked for it.
    pub stop_reason: Option<StopReason>,
    /// Log-probabilities, as in [`Answer::logprobs`].
    pub logprobs: Vec<TokenLogprobs>,
}

/// An answer. [`Display`] writes its text.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Answer {
    /// Positions of the whole prompt, visual tokens included.
    pub prompt_tokens: usize,
    /// Positions of the prompt that were cached from earlier turns.
    pub cached_tokens: usize,
    /// Generated ids. A stop token is the last one; a stop string ends in the text of the last one.
    pub token_ids: Vec<u32>,
    /// The text without special tokens and surrounding white space, up to a stop string.
    pub text: String,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// What ended it, if the caller asked for it.
    pub stop_reason: Option<StopReason>,
    /// The log-probabilities of the tokens, if [`AnswerOptions::top_logprobs`](super::AnswerOptions::top_logprobs) asks
    /// for them; only those of new tokens in an answer that was resumed.
    pub logprobs: Vec<TokenLogprobs>,
    /// The other answers, if [`AnswerOptions::n`](super::AnswerOptions::n) asks for several.
    pub alternatives: Vec<Choice>,
    /// Milliseconds spent encoding this turn's images.
    pub vision_ms: f64,
    /// Milliseconds from the prompt to the first token.
    pub prefill_ms: f64,
    /// Milliseconds for the other tokens.
    pub decode_ms: f64,
}

impl Answer {
    pub(super) fn new(prompt_tokens: usize, cached_tokens: usize, vision_ms: f64) -> Self {
        Self {
            prompt_tokens,
            cached_tokens,
            token_ids: Vec::new(),
            text: String::new(),
            finish_reason: FinishReason::Length,
            stop_reason: None,
            logprobs: Vec::new(),
            alternatives: Vec::new(),
            vision_ms,
            prefill_ms: 0.0,
            decode_ms: 0.0,
        }
    }

    /// Tokens per second after the first one of each answer; 0 if there is only one.
    pub fn decode_tokens_per_s(&self) -> f64 {
        let others = self.alternatives.iter().map(|choice| &choice.token_ids);
        let tokens: usize = others.chain([&self.token_ids]).map(|ids| ids.len().saturating_sub(1)).sum();
        if self.decode_ms > 0.0 { tokens as f64 * 1000.0 / self.decode_ms } else { 0.0 }
    }
}

impl Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
