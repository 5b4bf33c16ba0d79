//! `GET /v1/models` and `/v1/models/{id}`.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use serde_json::{Value, json};

use super::error::ApiError;
use super::fields::Fields;
use super::image_model::ImageServed;
use super::reply::json_response;
use super::served::Served;
use super::state::Server;

pub async fn list(State(server): State<Arc<Server>>) -> Result<Response, ApiError> {
    let mut entries = vec![entry(server.served()?)];
    entries.extend(server.image_model().map(|model| image_entry(model)));
    Ok(json_response(&json!({ "object": "list", "data": entries })))
}

pub async fn show(State(server): State<Arc<Server>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    let served = server.served()?;
    if let Some(model) = server.image_model().filter(|model| model.id == id && served.id != id) {
        return Ok(json_response(&image_entry(model)));
    }
    check_name(&id, &server, &served.id)?;
    Ok(json_response(&entry(served)))
}

fn entry(served: &Served) -> Value {
    let Served { id, created, sampling, .. } = served;
    let input = if served.image_format.is_some() { vec!["text", "image"] } else { vec!["text"] };
    let meta = json!({
        "context": served.context,
        "vocab": served.vocab,
        "input": input,
        "precision": served.precision,
        "sampling": { "temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p },
    });
    json!({ "id": id, "object": "model", "created": created, "owned_by": "mgm", "meta": meta })
}

fn image_entry(model: &ImageServed) -> Value {
    let ImageServed { id, created, default_size: (width, height), precision, .. } = model;
    let meta = json!({ "input": ["text", "image"], "output": ["image"], "size": format!("{width}x{height}"), "precision": precision });
    json!({ "id": id, "object": "model", "created": created, "owned_by": "mgm", "meta": meta })
}

/// Checks the field `model` of a request, if there is one.
///
/// # Errors
/// `model_not_found`; `invalid_value`.
pub fn check_model(fields: &mut Fields, server: &Server, served: &Served) -> Result<(), ApiError> {
    check_model_id(fields, server, &served.id)
}

/// The same for the model `id`.
///
/// # Errors
/// As [`check_model`].
pub fn check_model_id(fields: &mut Fields, server: &Server, id: &str) -> Result<(), ApiError> {
    fields.text("model")?.map_or(Ok(()), |name| check_name(&name, server, id))
}

fn check_name(name: &str, server: &Server, id: &str) -> Result<(), ApiError> {
    let is_known = name == id || server.settings.alias.iter().any(|alias| alias == name || alias == "*");
    if is_known { Ok(()) } else { Err(ApiError::model_not_found(name, id)) }
}
