//! What a request took: tokens and time.

use serde::Serialize;

/// Tokens of a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    pub total_tokens: usize,
    pub prompt_tokens_details: PromptDetails,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct PromptDetails {
    pub cached_tokens: usize,
    pub image_tokens: usize,
}

impl Usage {
    /// The sum over several prompts.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let (a, b) = (self.prompt_tokens_details, other.prompt_tokens_details);
        Self {
            prompt_tokens: self.prompt_tokens + other.prompt_tokens,
            completion_tokens: self.completion_tokens + other.completion_tokens,
            total_tokens: self.total_tokens + other.total_tokens,
            prompt_tokens_details: PromptDetails {
                cached_tokens: a.cached_tokens + b.cached_tokens,
                image_tokens: a.image_tokens + b.image_tokens,
            },
        }
    }
}

/// Times of a request in milliseconds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Timings {
    pub queue_ms: f64,
    pub prefill_ms: f64,
    pub decode_ms: f64,
    pub total_ms: f64,
}
