//! `GET /health`, for load balancers, and `/health/live`, for supervisors. They need no key.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::RETRY_AFTER;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::reply::json_response;
use super::state::Server;

pub async fn health(State(server): State<Arc<Server>>) -> Response {
    let unavailable = |value: Value, seconds: u64| {
        (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, seconds.to_string())], json_response(&value)).into_response()
    };
    match server.state() {
        "ok" => json_response(&json!({ "status": "ok" })),
        "loading" => {
            unavailable(json!({ "status": "loading", "progress": server.progress() }), server.loading_seconds())
        }
        "error" => unavailable(json!({ "status": "error", "message": server.failure() }), 60),
        status => unavailable(json!({ "status": status }), 1),
    }
}

pub async fn live(State(server): State<Arc<Server>>) -> Response {
    if server.is_alive() {
        json_response(&json!({ "status": "ok" }))
    } else {
        let body = json!({ "status": "error", "message": "the engine does not finish its turns" });
        (StatusCode::SERVICE_UNAVAILABLE, json_response(&body)).into_response()
    }
}
