//! Progress of a run.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;

use crate::progress;

/// Time between two lines if standard error is not a terminal.
const INTERVAL: Duration = Duration::from_secs(30);

/// Reports progress on standard error: a bar in a terminal, otherwise a line every [`INTERVAL`].
pub struct ProgressLog {
    bar: ProgressBar,
    total: usize,
    started: Instant,
    /// Time of the last line. `None` in a terminal.
    last: Option<Instant>,
}

impl ProgressLog {
    pub fn new(total: usize) -> Self {
        let started = Instant::now();
        let last = (!std::io::stderr().is_terminal()).then_some(started);
        Self { bar: progress::count(total as u64, "answering"), total, started, last }
    }

    pub fn update(&mut self, done: usize) {
        self.bar.set_position(done as u64);
        if self.last.is_some_and(|last| last.elapsed() >= INTERVAL) {
            self.last = Some(Instant::now());
            let rate = done as f64 / self.started.elapsed().as_secs_f64();
            let minutes = (self.total - done) as f64 / rate / 60.0;
            note!("mgm: note: {done} of {} answered, {rate:.1} per second, {minutes:.0} minutes left", self.total);
        }
    }

    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
