//! How much of a prompt is computed at a time.

use std::time::Duration;

/// Positions of a slice, at least and at most.
const LEAST: usize = 16;
pub(super) const MOST: usize = 512;
/// Positions before anything was measured.
const FIRST: usize = 64;

/// Chooses the positions of a slice from the time that the ones before took.
#[derive(Debug)]
pub(super) struct Slices {
    duration: Duration,
    /// Positions per second.
    rate: Option<f64>,
}

impl Slices {
    pub(super) fn new(duration: Duration) -> Self {
        Self { duration, rate: None }
    }

    /// Positions that take about as long as a slice should.
    pub(super) fn positions(&self) -> usize {
        let Some(rate) = self.rate else { return FIRST };
        let positions = (rate * self.duration.as_secs_f64()) as usize;
        (positions / LEAST * LEAST).clamp(LEAST, MOST)
    }

    /// A slice of `positions` took `time`.
    pub(super) fn measured(&mut self, positions: usize, time: Duration) {
        let rate = positions as f64 / time.as_secs_f64().max(1e-6);
        // Times vary with what else the device does.
        self.rate = Some(self.rate.map_or(rate, |before| 0.5 * (before + rate)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_takes_about_the_time_it_should() {
        let mut slices = Slices::new(Duration::from_millis(100));
        assert_eq!(slices.positions(), FIRST);
        for (positions_per_ms, expected) in [(1.0, 96), (0.01, LEAST), (100.0, MOST)] {
            for _ in 0..40 {
                let positions = slices.positions();
                slices.measured(positions, Duration::from_secs_f64(positions as f64 / positions_per_ms / 1e3));
            }
            // Rates approach the measured one by halves.
            assert!(slices.positions().abs_diff(expected) <= LEAST, "{} positions", slices.positions());
        }
    }
}
