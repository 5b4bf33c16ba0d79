//! Opens a lost device again: after a driver's reset, a sleeping laptop, a GPU that was unplugged.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mgm::Error;
use mgm::gpu::{Gpu, GpuOptions};

use crate::device_cache;

/// Losses without a result in between after which a command gives up: the work itself probably resets the device.
const MAX_LOSSES: u32 = 3;
/// How long a driver may need after a reset.
const ATTEMPTS: u32 = 5;
const WAIT: Duration = Duration::from_millis(500);

/// Replaces a command's device when it is lost.
pub struct Recovery {
    options: GpuOptions,
    losses: u32,
}

impl Recovery {
    pub fn new(options: GpuOptions) -> Self {
        Self { options, losses: 0 }
    }

    /// Resets the count of losses. Called after each answer or image.
    pub fn note_result(&mut self) {
        self.losses = 0;
    }

    /// The next device after `error`.
    ///
    /// # Errors
    /// `error` if it is not the loss of a device, or if devices are lost again and again or cannot be opened.
    pub async fn reopen(&mut self, error: Error) -> mgm::Result<Gpu> {
        let Error::DeviceLost(reason) = &error else { return Err(error) };
        if self.losses == MAX_LOSSES {
            return Err(error);
        }
        self.losses += 1;
        note!("mgm: note: the GPU device was lost ({reason}); opening it again");
        for _ in 1..ATTEMPTS {
            if let Ok(gpu) = device_cache::open(&self.options).await {
                return Ok(gpu);
            }
            std::thread::sleep(WAIT);
        }
        device_cache::open(&self.options).await.map_err(|_| error)
    }
}

/// For tests: the submission after which the next device is lost. `MGM_LOSE_DEVICE` has one number for each device, the
/// first one's first, with commas between them.
pub fn lost_after() -> Option<u64> {
    static OPENED: AtomicUsize = AtomicUsize::new(0);
    let index = OPENED.fetch_add(1, Ordering::Relaxed);
    std::env::var("MGM_LOSE_DEVICE").ok()?.split(',').nth(index)?.parse().ok()
}
