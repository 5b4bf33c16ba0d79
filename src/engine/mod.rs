//! Many sequences at once, by continuous batching: they join and leave between steps, and share what their prompts have
//! in common.
//!
//! [`Engine`] has no threads and does no waiting of its own: the host submits jobs, and calls [`Engine::turn`] until it
//! is idle. A turn is at most one slice of a prompt or of an image's encoding, and one decoding step of all running
//! sequences.

pub mod blocks;
mod continuous;
pub mod digest;
mod encoder;
mod image_cache;
pub mod images;
mod job;
mod lookup;
mod queue;
mod recovery;
mod request;
mod sampler;
mod sequence;
mod slice;

pub use continuous::{Engine, EngineOptions, Figures};
pub use encoder::ImageFigures;
pub use job::{Event, Job, JobId, Timings, Usage};
pub use recovery::Unfinished;

pub use crate::generation::{AnswerOptions, FinishReason, StopReason};
pub use crate::language::{Constraint, TokenLogprob, TokenLogprobs};
