//! `POST /v1/embeddings`: the mean of the last hidden states of the language model.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::caller::Caller;
use super::chat::{WITHOUT_EFFECT, fit};
use super::completion::read;
use super::completions::prompts;
use super::error::ApiError;
use super::fields::Fields;
use super::models::check_model;
use super::reply::{json_response, with_ignored};
use super::served::Served;
use super::state::Server;

/// Inputs of a request at most.
const MAX_INPUTS: usize = 256;

/// A request that was read.
struct Read {
    inputs: VecDeque<Vec<u32>>,
    as_base64: bool,
    ignored: Vec<String>,
}

pub async fn embed(
    State(server): State<Arc<Server>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let (served, Read { inputs, as_base64, ignored }) = read(&server, caller, &headers, body, prepare).await?;
    let tokens: usize = inputs.iter().map(Vec::len).sum();
    let permit = server.admit(&served, 1)?;
    // Dropping the receiver cancels the request.
    let embedded = server.embed(inputs).await.unwrap_or_else(|_| Err(ApiError::draining()));
    drop(permit);
    let data = embedded?.into_iter().enumerate().map(|(index, values)| {
        let embedding: Value = if as_base64 {
            STANDARD.encode(values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>()).into()
        } else {
            values.into()
        };
        json!({ "object": "embedding", "index": index, "embedding": embedding })
    });
    let usage = json!({ "prompt_tokens": tokens, "total_tokens": tokens });
    let data: Vec<Value> = data.collect();
    let response = json!({ "object": "list", "data": data, "model": served.id, "usage": usage });
    Ok(with_ignored(json_response(&response), &ignored))
}

fn prepare(mut fields: Fields, server: &Server, served: &Served, _caller: &Caller) -> Result<Read, ApiError> {
    check_model(&mut fields, server, served)?;
    let as_base64 = match fields.text("encoding_format")?.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => {
            let message = "encoding_format can be \"float\" or \"base64\"";
            return Err(ApiError::invalid_value("encoding_format", message));
        }
    };
    let width = served.hidden as i64;
    if fields.integer("dimensions", 1..=i64::MAX)?.is_some_and(|dimensions| dimensions != width) {
        let message = format!("embeddings of this model have {width} dimensions");
        return Err(ApiError::unsupported_field("dimensions", message));
    }
    fields.accept(&WITHOUT_EFFECT);
    let inputs = prompts("input", fields.take("input"), served, MAX_INPUTS)?;
    for ids in &inputs {
        fit(ids.len(), 0, served).map_err(|error| error.map_param(|_| "input".to_owned()))?;
    }
    Ok(Read { inputs: inputs.into(), as_base64, ignored: fields.rest() })
}
