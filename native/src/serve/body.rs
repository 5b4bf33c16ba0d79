//! Reads bodies of requests, of bounded size and in bounded time.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, EXPECT};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::error::ApiError;
use super::options::MAX_BODIES;

/// Seconds for a body to arrive.
const BODY_SECONDS: u64 = 60;
/// Bytes of a permit.
const PERMIT: u64 = 1 << 10;

/// Bounds the bodies of all requests together.
#[derive(Debug)]
pub struct Bodies {
    limit: u64,
    permits: Arc<Semaphore>,
}

/// A body, which counts until it is dropped.
#[derive(Debug)]
pub struct ReadBody {
    pub bytes: Vec<u8>,
    _permit: OwnedSemaphorePermit,
}

impl Bodies {
    /// `limit`: bytes of one body.
    pub fn new(limit: u64) -> Self {
        Self { limit, permits: Arc::new(Semaphore::new((MAX_BODIES / PERMIT) as usize)) }
    }

    /// Reads a body that is declared as JSON.
    ///
    /// # Errors
    /// `unsupported_media_type`, `body_too_large`, `body_timeout`; `invalid_json` if the client goes away.
    pub async fn read_json(&self, headers: &HeaderMap, body: Body) -> Result<ReadBody, ApiError> {
        self.read_as("application/json", headers, body).await
    }

    /// Reads a body that is declared as a form, whose `Content-Type` has more to it.
    ///
    /// # Errors
    /// As [`Self::read_json`].
    pub async fn read_form(&self, headers: &HeaderMap, body: Body) -> Result<ReadBody, ApiError> {
        self.read_as("multipart/form-data", headers, body).await
    }

    async fn read_as(&self, expected: &str, headers: &HeaderMap, body: Body) -> Result<ReadBody, ApiError> {
        let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let media_type = content_type.split(';').next().unwrap_or_default().trim();
        if !media_type.eq_ignore_ascii_case(expected) {
            return Err(ApiError::unsupported_media_type(expected));
        }
        let read = timeout(Duration::from_secs(BODY_SECONDS), self.read(headers, body));
        read.await.unwrap_or_else(|_| Err(ApiError::body_timeout(BODY_SECONDS)))
    }

    async fn read(&self, headers: &HeaderMap, body: Body) -> Result<ReadBody, ApiError> {
        let declared = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if declared.is_some_and(|length| length > self.limit) {
            if !headers.contains_key(EXPECT) {
                self.discard(body).await;
            }
            return Err(ApiError::body_too_large(self.limit));
        }
        let permits = declared.unwrap_or(self.limit).div_ceil(PERMIT).max(1);
        let permit = self.permits.clone().acquire_many_owned(permits as u32).await;
        // It is never closed.
        let permit = permit.map_err(|_| ApiError::draining())?;
        let mut bytes = Vec::with_capacity(declared.unwrap_or(0) as usize);
        let mut body = pin!(body);
        while let Some(frame) = poll_fn(|context| body.as_mut().poll_frame(context)).await {
            let frame = frame.map_err(|error| ApiError::invalid_json(format!("the body ended early: {error}")))?;
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() as u64 + data.len() as u64 > self.limit {
                return Err(ApiError::body_too_large(self.limit));
            }
            bytes.extend_from_slice(&data);
        }
        Ok(ReadBody { bytes, _permit: permit })
    }

    /// Reads a body that is a little too large to its end: most clients read the answer only then.
    async fn discard(&self, body: Body) {
        let mut left = 2 * self.limit;
        let mut body = pin!(body);
        while let Some(Ok(frame)) = poll_fn(|context| body.as_mut().poll_frame(context)).await {
            let Some(rest) = left.checked_sub(frame.data_ref().map_or(0, |data| data.len() as u64)) else { return };
            left = rest;
        }
    }
}
