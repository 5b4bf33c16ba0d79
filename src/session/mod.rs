//! Conversations with a model: text and images in, text out.
//!
//! [`Model`] holds the weights on a device, [`Chat`] one conversation with its key/value cache, [`Ask`] a question that
//! is about to be asked.

mod answer;
mod ask;
mod batch;
mod chat;
mod choice;
mod image;
mod model;

use web_time::Instant;

pub use answer::{Answer, Choice, Event, OnEvent};
pub use ask::Ask;
pub use batch::PreparedQuestion;
pub use chat::Chat;
pub use image::{ImageSource, image_sources};
pub use model::{AttentionMap, Model, ModelText, conversation_template, own_template};

pub use crate::generation::{AnswerOptions, FinishReason, MAX_BIASES, MAX_CHOICES, StopReason};
pub use crate::language::{TokenLogprob, TokenLogprobs};
pub use crate::loader::LoadOptions;

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}
