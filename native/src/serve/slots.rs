//! Bounds how many requests are computed or wait.

use std::sync::Arc;

use tokio::sync::Semaphore;

/// A slot for each sequence that is computed or may wait.
#[derive(Debug)]
pub struct Slots {
    pub free: Arc<Semaphore>,
    /// All of them.
    pub count: u32,
}

impl Slots {
    pub fn new(parallel: usize, queue: u32) -> Self {
        let count = (parallel as u32).saturating_add(queue).min(Semaphore::MAX_PERMITS.min(u32::MAX as usize) as u32);
        Self { free: Arc::new(Semaphore::new(count as usize)), count }
    }
}
