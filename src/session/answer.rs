//! Answers and the events on the way to them.

use std::fmt::{self, Display};
use std::ops::ControlFlow;

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
    /// The next token of the answer.
    Token {
        /// Its id.
        id: u32,
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

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FinishReason {
    /// The model generated a stop token.
    Stop,
    /// The maximum number of tokens or the end of the context was reached.
    Length,
    /// The caller stopped it.
    Cancelled,
}

impl FinishReason {
    /// `stop`, `length` or `cancelled`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
        }
    }
}

impl Display for FinishReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An answer. [`Display`] writes its text.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Answer {
    /// Positions of the whole prompt, visual tokens included.
    pub prompt_tokens: usize,
    /// Positions of the prompt that were cached from earlier turns.
    pub cached_tokens: usize,
    /// Generated ids. A stop token is the last one.
    pub token_ids: Vec<u32>,
    /// The text without special tokens and surrounding white space.
    pub text: String,
    /// Why it ended.
    pub finish_reason: FinishReason,
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
            vision_ms,
            prefill_ms: 0.0,
            decode_ms: 0.0,
        }
    }

    /// Tokens per second after the first one; 0 if there is only one.
    pub fn decode_tokens_per_s(&self) -> f64 {
        let tokens = self.token_ids.len().saturating_sub(1) as f64;
        if self.decode_ms > 0.0 { tokens * 1000.0 / self.decode_ms } else { 0.0 }
    }
}

impl Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
