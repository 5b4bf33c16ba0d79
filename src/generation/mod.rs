//! How answers are generated, by a conversation or by the engine: their options, random numbers and ends.

mod answer_text;
mod draws;
mod finish;
mod options;

pub use answer_text::AnswerText;
pub use draws::Draws;
pub use finish::{FinishReason, StopReason};
pub use options::{AnswerOptions, MAX_BIASES, MAX_CHOICES};
