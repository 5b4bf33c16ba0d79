//! The answers of a job that are still to be generated.

use std::rc::Rc;

use web_time::Instant;

use super::digest::CachedPosition;
use super::job::{Event, Job, JobId, Timings, Usage};
use crate::Error;
use crate::generation::{FinishReason, StopReason};

/// One answer of a job, or several that do not exist apart yet.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub id: JobId,
    pub job: Rc<Job>,
    /// The number of the answer.
    pub choice: usize,
    /// Answers after it that begin when the prompt is computed.
    pub forks: usize,
    /// Tokens of the answer that exist.
    pub begun: Vec<u32>,
    /// Positions of the prompt that were in the cache when it was first computed.
    pub cached: Option<usize>,
    pub times: Times,
}

/// When an answer got where.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    pub submitted: Instant,
    pub admitted: Option<Instant>,
    pub first_token: Option<Instant>,
}

impl Request {
    pub(super) fn new(id: JobId, job: Rc<Job>, choice: usize, forks: usize, begun: Vec<u32>) -> Self {
        let times = Times { submitted: Instant::now(), admitted: None, first_token: None };
        Self { id, job, choice, forks, begun, cached: None, times }
    }

    /// One of its other answers.
    pub(super) fn fork(&self, choice: usize) -> Self {
        Self { choice, forks: 0, ..self.clone() }
    }

    /// The prompt and the tokens that exist.
    pub(super) fn positions(&self) -> Vec<CachedPosition> {
        let mut positions = self.job.prompt.clone();
        positions.extend(self.begun.iter().map(|id| CachedPosition::Text(*id)));
        positions
    }

    /// What is wrong with all its answers.
    pub(super) fn failed(&self, error: &Error) -> Vec<(JobId, Event)> {
        let failed = |choice| (self.id, Event::Failed { choice, error: error.clone() });
        (self.choice..=self.choice + self.forks).map(failed).collect()
    }

    /// The ends of all its answers, of which `generated` tokens exist.
    pub(super) fn done(
        &self,
        reason: FinishReason,
        stop_reason: Option<&StopReason>,
        generated: usize,
    ) -> Vec<(JobId, Event)> {
        let usage = Usage { prompt: self.job.prompt.len(), cached: self.cached.unwrap_or(0), generated };
        let timings = self.times.timings();
        let done = |choice| Event::Done { choice, reason, stop_reason: stop_reason.cloned(), usage, timings };
        (self.choice..=self.choice + self.forks).map(|choice| (self.id, done(choice))).collect()
    }
}

impl Times {
    fn timings(&self) -> Timings {
        let now = Instant::now();
        let (admitted, first) = (self.admitted.unwrap_or(now), self.first_token.unwrap_or(now));
        Timings {
            queued: admitted.duration_since(self.submitted),
            prefill: first.duration_since(admitted),
            decode: now.duration_since(first),
        }
    }
}
