//! `GET /metrics`.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};

use super::metrics::Text;
use super::state::Server;

pub async fn metrics(State(server): State<Arc<Server>>) -> Response {
    let mut out = Text::default();
    server.metrics.write(&mut out);
    out.kind("mgm_state", "gauge", "What the server does: 1 for its state.");
    for state in ["loading", "ok", "recovering", "draining", "error"] {
        out.value(&format!("mgm_state{{state=\"{state}\"}}"), u64::from(server.state() == state));
    }
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], out.0).into_response()
}
