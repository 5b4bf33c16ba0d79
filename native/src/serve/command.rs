//! What other threads ask the engine's thread.

use std::sync::Arc;

use mgm::engine::digest::Salt;
use mgm::session::AnswerOptions;

use super::embedder::EmbeddingJob;
use super::mailbox::Mailbox;
use super::prompt::Prompt;
use crate::constraint::AnswerConstraint;

/// A prompt to continue.
#[derive(Debug)]
pub struct Submission {
    pub prompt: Prompt,
    pub options: AnswerOptions,
    /// What its answers must look like.
    pub constraint: Option<AnswerConstraint>,
    pub salt: Salt,
    pub user: u64,
}

/// What other threads ask.
#[derive(Debug)]
pub enum Command {
    Submit(u64, Box<Submission>, Arc<Mailbox>),
    Embed(EmbeddingJob),
    Cancel(u64),
    Stop,
}
