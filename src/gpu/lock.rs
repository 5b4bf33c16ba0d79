//! A mutex without poisoning.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A mutex whose value stays usable after a panic in another thread: every value in it is whole between statements.
#[derive(Debug, Default)]
pub(crate) struct Lock<T>(Mutex<T>);

impl<T> Lock<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
