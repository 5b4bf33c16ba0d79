//! Jobs that wait, and whose is next.

use std::collections::{HashMap, VecDeque};

use super::job::JobId;
use super::request::Request;

/// A position of a prompt costs this part of a generated token: many are computed at once.
const PREFILL_WEIGHT: f64 = 0.125;

/// Jobs that wait. Each user has a virtual time, which grows by the tokens that are computed for them. The user with
/// the lowest is next; the jobs of one user are in the order of their arrival.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Preempted jobs, which have been admitted before.
    resumed: VecDeque<Request>,
    waiting: VecDeque<Request>,
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
    pub fn push(&mut self, request: Request) {
        let (now, user) = (self.now, request.job.user);
        let is_active = self.waiting.iter().any(|other| other.job.user == user);
        let time = self.times.entry(user).or_insert(now);
        if !is_active {
            *time = time.max(now);
        }
        self.waiting.push_back(request);
    }

    /// Puts a preempted job before all others.
    pub fn push_front(&mut self, request: Request) {
        self.resumed.push_front(request);
    }

    /// Takes the next job.
    pub fn pop(&mut self) -> Option<Request> {
        if let Some(request) = self.resumed.pop_front() {
            return Some(request);
        }
        let time = |request: &Request| self.times.get(&request.job.user).copied().unwrap_or(self.now);
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

    /// The answers that wait: those that resume, then in the order of their arrival.
    pub fn requests(&self) -> impl Iterator<Item = &Request> {
        self.resumed.iter().chain(&self.waiting)
    }

    /// Removes a job. Returns what waited of it.
    pub fn remove(&mut self, id: JobId) -> Vec<Request> {
        let mut removed = Vec::new();
        for queue in [&mut self.resumed, &mut self.waiting] {
            removed.extend(queue.iter().filter(|request| request.id == id).cloned());
            queue.retain(|request| request.id != id);
        }
        removed
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
    use std::rc::Rc;

    use super::super::job::Job;
    use super::*;

    fn request(id: u64, user: u64) -> Request {
        Request::new(JobId(id), Rc::new(Job { user, ..Job::new(Vec::new(), 1) }), 0, 0, Vec::new())
    }

    fn next(queue: &mut Queue) -> Option<u64> {
        queue.pop().map(|request| request.id.0)
    }

    #[test]
    fn a_user_with_many_jobs_does_not_keep_another_waiting() {
        let mut queue = Queue::default();
        for id in 0..32 {
            queue.push(request(id, 1));
        }
        // Eight jobs of the first user are admitted and computed before the second asks.
        for _ in 0..8 {
            let Request { job, .. } = queue.pop().expect("a job");
            queue.charge(job.user, 80, 10);
        }
        queue.push(request(100, 2));
        assert_eq!(next(&mut queue), Some(100));
        assert_eq!(next(&mut queue), Some(8), "in the order of arrival");
    }

    #[test]
    fn users_alternate_by_what_was_computed_for_them() {
        let mut queue = Queue::default();
        for id in 0..12 {
            queue.push(request(id, id % 2));
        }
        let mut served = [0; 2];
        for _ in 0..6 {
            let Request { job, .. } = queue.pop().expect("a job");
            served[job.user as usize] += 1;
            // The second user's answers are twice as long.
            queue.charge(job.user, 0, if job.user == 0 { 10 } else { 20 });
        }
        assert_eq!(served, [4, 2]);
    }

    #[test]
    fn a_preempted_job_is_next_and_a_removed_one_is_gone() {
        let mut queue = Queue::default();
        queue.push(request(0, 0));
        queue.push(request(1, 0));
        queue.push_front(request(2, 9));
        assert_eq!((queue.remove(JobId(0)).len(), queue.remove(JobId(0)).len()), (1, 0));
        assert_eq!(next(&mut queue), Some(2));
        assert_eq!(next(&mut queue), Some(1));
        assert!(queue.is_empty());
    }
}
