//! Many sequences at once, by continuous batching: they join and leave between steps, and share what their prompts have
//! in common.
//!
//! [`Engine`] has no threads and does no waiting of its own: the host submits jobs, and calls [`Engine::turn`] until it
//! is idle. A turn is at most one slice of a prompt and one decoding step of all running sequences.

pub mod blocks;
mod continuous;
pub mod digest;
mod job;
mod queue;
mod sequence;
mod slice;

pub use continuous::{Engine, EngineOptions, Figures};
pub use job::{End, Event, Job, JobId};
