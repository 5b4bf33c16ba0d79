//! Why an answer ended.

use std::fmt::{self, Display};

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FinishReason {
    /// The model generated a stop token or a stop string.
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

/// What ended an answer, if the caller asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopReason {
    /// One of the stop strings.
    String(String),
    /// One of [`AnswerOptions::stop_token_ids`](crate::session::AnswerOptions::stop_token_ids).
    Token(u32),
}
