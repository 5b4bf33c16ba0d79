//! `POST /v1/completions`: texts or tokens to continue, without a template.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use serde_json::Value;

use super::answer::Question;
use super::caller::Caller;
use super::chat::{WITHOUT_EFFECT, fit, stream_options};
use super::command::Submission;
use super::completion::{Form, Prepared, answer};
use super::decoding;
use super::error::ApiError;
use super::fields::{Fields, unexpected};
use super::models::check_model;
use super::prompt::Prompt;
use super::response_format;
use super::served::Served;
use super::state::Server;

/// Fields that would change the answer, and what to do instead.
const UNSUPPORTED: [(&str, &str); 4] =
    [("best_of", "use n"), ("suffix", "leave it out"), ("echo", "the prompt is known"), ("use_beam_search", "use n")];
/// The most of `logprobs`.
const MAX_LOGPROBS: i64 = 5;

pub async fn complete(
    State(server): State<Arc<Server>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    answer(&server, caller, &headers, body, prepare).await
}

fn prepare(mut fields: Fields, server: &Server, served: &Served, caller: &Caller) -> Result<Prepared, ApiError> {
    check_model(&mut fields, server, served)?;
    let logprobs = fields.integer("logprobs", 0..=MAX_LOGPROBS)?.map(|top| top as usize);
    let options = decoding::parse(&mut fields, server, served)?.with_top_logprobs(logprobs);
    let (stream, include_usage) = stream_options(&mut fields)?;
    let cache_salt = fields.text("cache_salt")?;
    let mut ignored = Vec::new();
    let wanted = response_format::parse(&mut fields)?;
    let constraint =
        wanted.map(|wanted| response_format::constraint(wanted, served, true, &mut ignored)).transpose()?;
    fields.refuse(&UNSUPPORTED)?;
    fields.accept(&WITHOUT_EFFECT);
    let prompts = prompts("prompt", fields.take("prompt"), served, served.parallel)?;
    ignored.extend(fields.rest());
    let salt = server.salt(&caller.user, cache_salt.as_deref());
    let prepared = prompts.into_iter().map(|ids| {
        let positions = fit(ids.len(), 0, served)?;
        let options = options.clone().with_max_new_tokens(options.max_new_tokens.min(positions));
        let question = Question {
            options: options.clone(),
            prompt_tokens: ids.len(),
            image_tokens: 0,
            is_continuation: true,
            calls: None,
            arrived: caller.arrived,
        };
        let prompt = Prompt::of_ids(ids);
        Ok((
            Submission {
                prompt,
                options,
                constraint: constraint.clone(),
                salt: salt.clone(),
                user: caller.user.number,
            },
            question,
        ))
    });
    let prompts = prepared.collect::<Result<_, ApiError>>()?;
    Ok(Prepared { form: Form::Text, prompts, stream, include_usage, ignored })
}

/// The ids of the prompts in the field `param`: of a text, of up to `most` texts, ids, or lists of ids.
///
/// # Errors
/// `invalid_value`.
pub fn prompts(param: &str, value: Option<Value>, served: &Served, most: usize) -> Result<Vec<Vec<u32>>, ApiError> {
    let expected = format!("a text, token ids, or up to {most} texts or lists of token ids, none of them empty");
    let wrong = |value: &Value| unexpected(param, value, &expected);
    let encode = |text: &str| {
        let ids = served.text.tokenizer().encode(text);
        ids.map_err(|error| ApiError::invalid_value(param, error.to_string()))
    };
    let found = match value {
        Some(Value::String(text)) => vec![encode(&text)?],
        Some(Value::Array(list)) if list.first().is_some_and(Value::is_number) => {
            vec![decoding::ids(param, Some(list.into()), served.vocab)?]
        }
        Some(Value::Array(list)) if list.len() <= most => {
            let prompt = |value: Value| match value {
                Value::String(text) => encode(&text),
                value @ Value::Array(_) => decoding::ids(param, Some(value), served.vocab),
                value => Err(wrong(&value)),
            };
            list.into_iter().map(prompt).collect::<Result<_, _>>()?
        }
        value => return Err(wrong(&value.unwrap_or_default())),
    };
    if found.is_empty() || found.iter().any(Vec::is_empty) {
        return Err(ApiError::invalid_value(param, format!("an input is empty, expected {expected}")));
    }
    Ok(found)
}
