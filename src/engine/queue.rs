//! Jobs that wait, and whose is next.

use std::collections::{HashMap, VecDeque};

use super::job::{Job, JobId};

/// A position of a prompt costs this part of a generated token: many are computed at once.
const PREFILL_WEIGHT: f64 = 0.125;

/// Jobs that wait. Each user has a virtual time, which grows by the tokens that are computed for them. The user with
/// the lowest is next; the jobs of one user are in the order of their arrival.
#[derive(Debug, Default)]
pub struct Queue {
    /// Preempted jobs, which have been admitted before.
    resumed: VecDeque<(JobId, Job)>,
    waiting: VecDeque<(JobId, Job)>,
    times: HashMap<u64, f64>,
    /// The virtual time of the user that was served last. A new user starts here, with no credit for the past.
    now: f64,
}

impl Queue {
    /// Jobs that wait.
    pub fn len(&self) -> usize {
        self.resumed.len() + self.waiting.len()
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends a job.
    pub fn push(&mut self, id: JobId, job: Job) {
        let now = self.now;
        let is_active = self.waiting.iter().any(|(_, other)| other.user == job.user);
        let time = self.times.entry(job.user).or_insert(now);
        if !is_active {
            *time = time.max(now);
        }
        self.waiting.push_back((id, job));
    }

    /// Puts a preempted job before all others.
    pub fn push_front(&mut self, id: JobId, job: Job) {
        self.resumed.push_front((id, job));
    }

    /// Takes the next job.
    pub fn pop(&mut self) -> Option<(JobId, Job)> {
        if let Some(job) = self.resumed.pop_front() {
            return Some(job);
        }
        let time = |(_, job): &(JobId, Job)| self.times.get(&job.user).copied().unwrap_or(self.now);
        let times: Vec<f64> = self.waiting.iter().map(time).collect();
        // The first of equal ones.
        let next = (0..times.len()).min_by(|a, b| times[*a].total_cmp(&times[*b]))?;
        self.now = self.now.max(times[next]);
        let popped = self.waiting.remove(next);
        if self.waiting.is_empty() && self.resumed.is_empty() {
            // Nobody waits: nobody is owed anything.
            let now = self.now;
            self.times.retain(|_, time| *time > now);
        }
        popped
    }

    /// Removes a job.
    pub fn remove(&mut self, id: JobId) -> bool {
        let before = self.len();
        self.resumed.retain(|(other, _)| *other != id);
        self.waiting.retain(|(other, _)| *other != id);
        self.len() < before
    }

    /// Adds what was computed for a user.
    pub fn charge(&mut self, user: u64, prefilled: usize, generated: usize) {
        let now = self.now;
        let time = self.times.entry(user).or_insert(now);
        *time += PREFILL_WEIGHT * prefilled as f64 + generated as f64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(user: u64) -> Job {
        Job { user, ..Job::new(Vec::new(), 1) }
    }

    #[test]
    fn a_user_with_many_jobs_does_not_keep_another_waiting() {
        let mut queue = Queue::default();
        for id in 0..32 {
            queue.push(JobId(id), job(1));
        }
        // Eight jobs of the first user are admitted and computed before the second asks.
        for _ in 0..8 {
            let (_, job) = queue.pop().expect("a job");
            queue.charge(job.user, 80, 10);
        }
        queue.push(JobId(100), job(2));
        assert_eq!(queue.pop().map(|(id, _)| id), Some(JobId(100)));
        assert_eq!(queue.pop().map(|(id, _)| id), Some(JobId(8)), "in the order of arrival");
    }

    #[test]
    fn users_alternate_by_what_was_computed_for_them() {
        let mut queue = Queue::default();
        for id in 0..12 {
            queue.push(JobId(id), job(id % 2));
        }
        let mut served = [0; 2];
        for _ in 0..6 {
            let (_, job) = queue.pop().expect("a job");
            served[job.user as usize] += 1;
            // The second user's answers are twice as long.
            queue.charge(job.user, 0, if job.user == 0 { 10 } else { 20 });
        }
        assert_eq!(served, [4, 2]);
    }

    #[test]
    fn a_preempted_job_is_next_and_a_removed_one_is_gone() {
        let mut queue = Queue::default();
        queue.push(JobId(0), job(0));
        queue.push(JobId(1), job(0));
        queue.push_front(JobId(2), job(9));
        assert!(queue.remove(JobId(0)) && !queue.remove(JobId(0)));
        assert_eq!(queue.pop().map(|(id, _)| id), Some(JobId(2)));
        assert_eq!(queue.pop().map(|(id, _)| id), Some(JobId(1)));
        assert!(queue.is_empty());
    }
}
