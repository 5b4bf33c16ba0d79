//! Bodies of answers, and what all of them share.

use std::hash::{BuildHasher, RandomState};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::HeaderValue;
use axum::http::header::{CONTENT_TYPE, HeaderName};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// Names of fields that were ignored.
const IGNORED: HeaderName = HeaderName::from_static("x-mgm-ignored");
/// The most names in it.
const MAX_IGNORED: usize = 32;

/// A value as JSON.
pub fn json_response(value: &impl Serialize) -> Response {
    // Values that this program builds are always JSON.
    let body = serde_json::to_string(value).unwrap_or_default();
    ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response()
}

/// Adds the header that names ignored fields.
pub fn with_ignored(mut response: Response, ignored: &[String]) -> Response {
    let plain =
        |name: &&String| name.len() <= 64 && name.bytes().all(|c| c.is_ascii_alphanumeric() || b"_.-[]".contains(&c));
    let names: Vec<&str> = ignored.iter().filter(plain).take(MAX_IGNORED).map(String::as_str).collect();
    if let (false, Ok(value)) = (names.is_empty(), HeaderValue::from_str(&names.join(", "))) {
        response.headers_mut().insert(IGNORED, value);
    }
    response
}

/// Seconds since 1970.
pub fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// A random id of 24 hexadecimal digits after `prefix`.
pub fn random_id(prefix: &str) -> String {
    // The standard library's hasher keys are random.
    let random = RandomState::new();
    format!("{prefix}{:016x}{:08x}", random.hash_one(0u8), random.hash_one(1u8) >> 32)
}
