//! A job that is being computed.

use super::blocks::{BLOCK_ROWS, BlockPool, BlockTable};
use super::digest::CachedPosition;
use super::job::{Job, JobId};
use crate::ops::NO_ROW;

/// A job with blocks of the cache.
#[derive(Debug)]
pub(super) struct Sequence {
    pub id: JobId,
    pub job: Job,
    /// The number of admissions before this one. Steps in flight refer to it: a job that was preempted meanwhile has
    /// another.
    pub admission: u64,
    /// A number below that of sequences at a time; no other has it.
    pub seat: usize,
    pub table: BlockTable,
    /// The prompt and all tokens that are known.
    pub positions: Vec<CachedPosition>,
    /// The end of what is computed as a prompt.
    pub prefill: usize,
    /// Rows that are recorded to be written, from the start.
    pub written: usize,
    /// Which of the chosen tokens is the one at position `written`, if it is not in `positions`.
    pub token: u32,
    /// Slices of other prompts since one of this.
    pub waited: usize,
    /// Positions that others may use: in deterministic mode not those that were computed as generated tokens.
    shareable: usize,
}

impl Sequence {
    /// A job whose first `cached` positions are in `table`. `deterministic`: generated tokens are computed by decoding
    /// steps, even if they exist already.
    pub(super) fn new(
        (id, job): (JobId, Job),
        (admission, seat): (u64, usize),
        (table, cached): (BlockTable, usize),
        deterministic: bool,
    ) -> Self {
        let mut positions = job.prompt.clone();
        positions.extend(job.begun.iter().map(|id| CachedPosition::Text(*id)));
        let prefill = if deterministic { job.prompt.len() } else { positions.len() };
        let shareable = if deterministic { job.prompt.len() } else { usize::MAX };
        Self {
            id,
            job,
            admission,
            seat,
            table,
            positions,
            prefill,
            written: cached,
            token: NO_ROW,
            waited: 0,
            shareable,
        }
    }

    /// Whether its prompt is computed.
    pub(super) fn is_running(&self) -> bool {
        self.written >= self.prefill
    }

    /// Whether the last token that it may generate is chosen, or submitted to be.
    pub(super) fn is_submitted(&self) -> bool {
        self.written + 1 >= self.job.prompt.len() + self.job.max_new
    }

    /// Generated tokens that are known.
    pub(super) fn generated(&self) -> usize {
        self.positions.len() - self.job.prompt.len()
    }

    /// Positions that are both known and written, or recorded to be.
    fn stored(&self) -> &[CachedPosition] {
        &self.positions[..self.written.min(self.positions.len()).min(self.shareable)]
    }

    /// Makes its full blocks available to others, once more of them are full.
    pub(super) fn register(&mut self, pool: &mut BlockPool) {
        let end = self.written.min(self.positions.len()).min(self.shareable);
        if end / BLOCK_ROWS > self.table.registered() {
            pool.register(&mut self.table, &self.positions[..end]);
        }
    }

    /// Gives its blocks back. Returns the job with all tokens that are known.
    pub(super) fn release(self, pool: &mut BlockPool) -> (JobId, Job) {
        let stored = self.stored().to_vec();
        pool.release(self.table, &stored);
        let Self { id, mut job, positions, .. } = self;
        let token = |position: &CachedPosition| match position {
            CachedPosition::Text(id) => Some(*id),
            CachedPosition::Visual { .. } => None,
        };
        job.begun = positions[job.prompt.len()..].iter().filter_map(token).collect();
        (id, job)
    }
}
