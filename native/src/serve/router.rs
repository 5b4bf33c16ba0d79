//! Paths, and what happens before and after each of them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tokio::time::timeout_at;

use super::caller::Caller;
use super::error::ApiError;
use super::reply::random_id;
use super::state::Server;
use super::{chat, completions, embeddings, exposition, health, image_requests, models, responses, tokenize};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TIMEOUT: HeaderName = HeaderName::from_static("x-mgm-timeout-ms");

/// The address that a connection came from.
#[derive(Debug, Clone, Copy)]
pub struct Client(pub IpAddr);

/// All paths.
pub fn router(server: &Arc<Server>) -> Router {
    Router::new()
        .route("/health", get(health::health))
        .route("/health/live", get(health::live))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::show))
        .route("/v1/chat/completions", post(chat::chat))
        .route("/v1/completions", post(completions::complete))
        .route("/v1/embeddings", post(embeddings::embed))
        .route("/v1/responses", post(responses::respond))
        .route("/v1/images/generations", post(image_requests::generate))
        .route("/v1/images/edits", post(image_requests::edit))
        .route("/v1/images/variations", post(image_requests::vary))
        .route("/metrics", get(exposition::metrics))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(from_fn_with_state(server.clone(), around))
        .with_state(server.clone())
}

async fn not_found(uri: Uri) -> ApiError {
    ApiError::not_found(uri.path())
}

async fn method_not_allowed() -> ApiError {
    ApiError::method_not_allowed()
}

/// Checks who asks, bounds the time, and adds the headers of every answer.
async fn around(State(server): State<Arc<Server>>, mut request: Request, next: Next) -> Response {
    let arrived = Instant::now();
    let id = request_id(request.headers());
    let headers = request.headers().clone();
    let endpoint = endpoint(request.uri().path());
    let mut response = match check(&server, &mut request, arrived) {
        Ok(deadline) => {
            let answered = timeout_at(deadline.into(), next.run(request)).await;
            answered.unwrap_or_else(|_| ApiError::deadline_exceeded().into_response())
        }
        Err(Answered::Error(error)) => error.into_response(),
        Err(Answered::Preflight(response)) => *response,
    };
    server.access.allow_origin(&headers, response.headers_mut());
    response.headers_mut().insert(REQUEST_ID, id);
    server.metrics.request(endpoint, response.status().as_u16(), arrived.elapsed());
    response
}

/// The path as a label of metrics: clients must not be able to make new ones.
fn endpoint(path: &str) -> &'static str {
    const PATHS: [&str; 13] = [
        "/health",
        "/health/live",
        "/v1/models",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/v1/images/generations",
        "/v1/images/edits",
        "/v1/images/variations",
        "/metrics",
        "/tokenize",
        "/detokenize",
    ];
    PATHS.into_iter().find(|known| *known == path).unwrap_or("other")
}

/// A request that is answered before it reaches its path.
enum Answered {
    Error(ApiError),
    Preflight(Box<Response>),
}

impl From<ApiError> for Answered {
    fn from(error: ApiError) -> Self {
        Self::Error(error)
    }
}

/// Adds the [`Caller`] to a request. Returns its deadline.
fn check(server: &Server, request: &mut Request, arrived: Instant) -> Result<Instant, Answered> {
    server.access.check_host(request.headers(), request.uri())?;
    if request.method() == Method::OPTIONS
        && let Some(response) = server.access.preflight(request.headers())
    {
        return Err(Answered::Preflight(Box::new(response)));
    }
    let deadline = arrived + time_limit(server, request.headers())?;
    if !matches!(request.uri().path(), "/health" | "/health/live") {
        let client = request.extensions().get::<Client>().map_or(IpAddr::from([0, 0, 0, 0]), |client| client.0);
        let user = server.access.user(request.headers(), client)?;
        request.extensions_mut().insert(Caller { user, arrived, deadline });
    }
    Ok(deadline)
}

fn time_limit(server: &Server, headers: &HeaderMap) -> Result<Duration, ApiError> {
    let limit = server.settings.deadline();
    let Some(value) = headers.get(TIMEOUT) else { return Ok(limit) };
    let milliseconds = value.to_str().ok().and_then(|text| text.parse::<u64>().ok());
    let milliseconds = milliseconds.ok_or_else(|| {
        ApiError::invalid_value("x-mgm-timeout-ms", "x-mgm-timeout-ms is no whole number of milliseconds")
    })?;
    Ok(limit.min(Duration::from_millis(milliseconds)))
}

/// The client's id, or a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let plain = |c: &u8| c.is_ascii_alphanumeric() || *c == b'_' || *c == b'-';
    let sent = headers.get(REQUEST_ID).filter(|id| (1..=64).contains(&id.len()) && id.as_bytes().iter().all(plain));
    // Hexadecimal digits are always a header.
    sent.cloned()
        .or_else(|| HeaderValue::from_str(&random_id("req_")).ok())
        .unwrap_or(HeaderValue::from_static("req_0"))
}
