//! Who asks, and work on threads that may wait.

use std::time::Instant;

use super::access::User;
use super::error::ApiError;

/// Who asks, and until when.
#[derive(Debug, Clone)]
pub struct Caller {
    pub user: User,
    pub arrived: Instant,
    pub deadline: Instant,
}

/// Runs something that takes long on the host: parsing, tokenising, decoding images.
///
/// # Errors
/// Its own; `internal_error` if it panics.
pub async fn on_blocking_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(ApiError::internal("a bug in mgm: reading the request failed")))
}
