//! `POST /tokenize` and `/detokenize`, with the names of both vLLM and llama.cpp.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use mgm::text::PromptToken;
use serde_json::{Value, json};

use super::caller::on_blocking_thread;
use super::decoding::ids;
use super::error::ApiError;
use super::fields::Fields;
use super::messages::{Messages, PromptTools};
use super::models::check_model;
use super::reply::{json_response, with_ignored};
use super::served::Served;
use super::state::Server;

pub async fn tokenize(State(server): State<Arc<Server>>, headers: HeaderMap, body: Body) -> Result<Response, ApiError> {
    answer(server, headers, body, ids_of_text).await
}

pub async fn detokenize(
    State(server): State<Arc<Server>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    answer(server, headers, body, text_of_ids).await
}

async fn answer(
    server: Arc<Server>,
    headers: HeaderMap,
    body: Body,
    compute: fn(&mut Fields, &Served) -> Result<Value, ApiError>,
) -> Result<Response, ApiError> {
    let served = server.served()?.clone();
    let body = server.bodies.read_json(&headers, body).await?;
    let computed = on_blocking_thread(move || {
        let mut fields = Fields::parse(&body.bytes)?;
        check_model(&mut fields, &server, &served)?;
        let value = compute(&mut fields, &served)?;
        Ok((value, fields.rest()))
    });
    let (value, ignored) = computed.await?;
    Ok(with_ignored(json_response(&value), &ignored))
}

fn ids_of_text(fields: &mut Fields, served: &Served) -> Result<Value, ApiError> {
    let tokenizer = served.text.tokenizer();
    let text = fields.text("prompt")?.or(fields.text("content")?);
    let adds_special = fields.take("add_special_tokens") != Some(Value::Bool(false));
    let wants_texts = fields.flag("return_token_strs")?;
    let ids: Vec<u32> = match text {
        Some(text) => {
            let mut ids =
                tokenizer.encode(&text).map_err(|error| ApiError::invalid_value("prompt", error.to_string()))?;
            if !adds_special && ids.first().copied() == tokenizer.bos() && !ids.is_empty() {
                ids.remove(0);
            }
            ids
        }
        None => {
            let (messages, _) = Messages::parse(fields.take("messages"))?;
            if let Some(image) = messages.first_image() {
                let message = "images have no token ids: leave them out";
                return Err(ApiError::unsupported_field(&image.param, message));
            }
            let id = |token| match token {
                PromptToken::Text(id) => Some(id),
                PromptToken::Image => None,
            };
            let tools = PromptTools { is_native: served.tool_style.is_native, described: &[] };
            messages.tokens(&served.text, tools)?.into_iter().filter_map(id).collect()
        }
    };
    let mut value = json!({ "tokens": ids, "count": ids.len(), "max_model_len": served.context });
    if wants_texts {
        value["token_strs"] = ids.iter().map(|id| tokenizer.token_text(*id)).collect();
    }
    Ok(value)
}

fn text_of_ids(fields: &mut Fields, served: &Served) -> Result<Value, ApiError> {
    let ids = ids("tokens", fields.take("tokens"), served.vocab)?;
    let text = served.text.tokenizer().decode(&ids, false);
    Ok(json!({ "prompt": text, "content": text }))
}
