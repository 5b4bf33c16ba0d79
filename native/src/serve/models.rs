//! `GET /v1/models` and `/v1/models/{id}`.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use serde_json::{Value, json};

use super::error::ApiError;
use super::fields::Fields;
use super::reply::json_response;
use super::state::{Served, Server};

pub async fn list(State(server): State<Arc<Server>>) -> Result<Response, ApiError> {
    let served = server.served()?;
    Ok(json_response(&json!({ "object": "list", "data": [entry(served)] })))
}

pub async fn show(State(server): State<Arc<Server>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    let served = server.served()?;
    check_name(&id, &server, served)?;
    Ok(json_response(&entry(served)))
}

fn entry(served: &Served) -> Value {
    let Served { id, created, sampling, .. } = served;
    let input = if served.image_tokens.is_some() { vec!["text", "image"] } else { vec!["text"] };
    let meta = json!({
        "context": served.context,
        "vocab": served.vocab,
        "input": input,
        "precision": served.precision,
        "sampling": { "temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p },
    });
    json!({ "id": id, "object": "model", "created": created, "owned_by": "mgm", "meta": meta })
}

/// Checks the field `model` of a request, if there is one.
///
/// # Errors
/// `model_not_found`; `invalid_value`.
pub fn check_model(fields: &mut Fields, server: &Server, served: &Served) -> Result<(), ApiError> {
    fields.text("model")?.map_or(Ok(()), |name| check_name(&name, server, served))
}

fn check_name(name: &str, server: &Server, served: &Served) -> Result<(), ApiError> {
    let is_known = name == served.id || server.settings.alias.iter().any(|alias| alias == name || alias == "*");
    if is_known { Ok(()) } else { Err(ApiError::model_not_found(name, &served.id)) }
}
