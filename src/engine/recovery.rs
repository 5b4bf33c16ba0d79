//! What survives a lost device.

use std::collections::HashSet;

use super::job::{Event, Job, JobId};
use super::queue::Queue;

/// The jobs of an engine that did not end. They hold nothing of the device: the host opens another, loads the model
/// again, and gives them to a new engine ([`Engine::take_over`](super::Engine::take_over)).
#[derive(Debug)]
pub struct Unfinished {
    /// What happened before and was not reported.
    pub(super) events: Vec<(JobId, Event)>,
    pub(super) queue: Queue,
    pub(super) cancelled: HashSet<JobId>,
    pub(super) next_id: u64,
}

impl Unfinished {
    /// Each answer that did not end: its job, its number among the job's answers, and the tokens that exist. Answers
    /// that did not begin are counted with the first of them.
    pub fn answers(&self) -> impl Iterator<Item = (JobId, &Job, usize, &[u32])> {
        self.queue.requests().map(|request| (request.id, &*request.job, request.choice, request.begun.as_slice()))
    }

    /// What happened to jobs and was not reported, for a host that does not resume them.
    pub fn into_events(self) -> Vec<(JobId, Event)> {
        self.events
    }
}
