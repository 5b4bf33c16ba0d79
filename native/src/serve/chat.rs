//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use serde_json::Value;

use super::answer::Question;
use super::caller::Caller;
use super::command::Submission;
use super::completion::{Form, Prepared, answer};
use super::decoding;
use super::error::ApiError;
use super::fields::{Fields, unexpected};
use super::messages::{Messages, PromptTools};
use super::models::check_model;
use super::prompt::Prompt;
use super::response_format;
use super::served::Served;
use super::state::Server;
use super::tools::Tools;

/// Fields that have no effect here.
pub const WITHOUT_EFFECT: [&str; 9] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "prompt_cache_key",
    "safety_identifier",
    "reasoning_effort",
    "verbosity",
    "prediction",
];

/// Fields that would change the answer, and what to do instead.
const UNSUPPORTED: [(&str, &str); 9] = [
    ("functions", "use tools"),
    ("function_call", "use tool_choice"),
    ("audio", "ask for text"),
    ("web_search_options", "leave it out"),
    ("moderation", "leave it out"),
    ("best_of", "use n"),
    ("suffix", "use /v1/completions without it"),
    ("echo", "the prompt is known"),
    ("use_beam_search", "use n"),
];

pub async fn chat(
    State(server): State<Arc<Server>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    answer(&server, caller, &headers, body, prepare).await
}

/// Reads the fields of a request.
///
/// # Errors
/// `invalid_value` and others of [`ApiError`] with status 400 or 404.
pub fn prepare(mut fields: Fields, server: &Server, served: &Served, caller: &Caller) -> Result<Prepared, ApiError> {
    check_model(&mut fields, server, served)?;
    let mut options = decoding::parse(&mut fields, server, served)?;
    options = options.with_top_logprobs(decoding::chat_logprobs(&mut fields)?);
    let (stream, include_usage) = stream_options(&mut fields)?;
    check_form(&mut fields)?;
    let mut ignored = Vec::new();
    let wanted = response_format::parse(&mut fields)?;
    let tools = Tools::parse(&mut fields)?;
    let cache_salt = fields.text("cache_salt")?;
    fields.refuse(&UNSUPPORTED)?;
    fields.accept(&WITHOUT_EFFECT);
    let (mut messages, in_messages) = Messages::parse(fields.take("messages"))?;
    ignored.extend(in_messages.into_iter().chain(fields.rest()));

    let described = tools.as_ref().map_or(&[][..], |tools| &tools.described);
    let tokens = messages.tokens(&served.text, PromptTools { is_native: served.tool_style.is_native, described })?;
    let prompt = Prompt::new(tokens, messages.take_images(), server.settings.max_images, served)?;
    let style = served.tool_style;
    let calls = tools.is_some().then_some(style);
    let constraint = match (tools, wanted) {
        (Some(tools), wanted) => {
            Some(tools.constraint(served, &style, wanted.map(|wanted| wanted.format), &mut ignored)?)
        }
        (None, Some(wanted)) => Some(response_format::constraint(wanted, served, false, &mut ignored)?),
        (None, None) => None,
    };
    let (prompt_tokens, image_tokens) = prompt.count(served);
    let positions = fit(prompt_tokens, image_tokens, served)?;
    let max_new_tokens = options.max_new_tokens.min(positions);
    let question = Question {
        options: options.with_max_new_tokens(max_new_tokens),
        prompt_tokens,
        image_tokens,
        is_continuation: false,
        calls,
        arrived: caller.arrived,
    };
    let salt = server.salt(&caller.user, cache_salt.as_deref());
    let submission =
        Submission { prompt, options: question.options.clone(), constraint, salt, user: caller.user.number };
    Ok(Prepared { form: Form::Chat, prompts: vec![(submission, question)], stream, include_usage, ignored })
}

/// `stream` and `stream_options.include_usage`.
///
/// # Errors
/// `invalid_value`.
pub fn stream_options(fields: &mut Fields) -> Result<(bool, bool), ApiError> {
    let stream = fields.flag("stream")?;
    let include_usage = match fields.take("stream_options") {
        None => false,
        Some(_) if !stream => {
            return Err(ApiError::invalid_value("stream_options", "stream_options needs stream: true"));
        }
        Some(Value::Object(options)) => match options.get("include_usage") {
            None | Some(Value::Null) => false,
            Some(Value::Bool(flag)) => *flag,
            Some(value) => return Err(unexpected("stream_options.include_usage", value, "true or false")),
        },
        Some(value) => return Err(unexpected("stream_options", &value, "an object")),
    };
    Ok((stream, include_usage))
}

/// Answers are texts.
fn check_form(fields: &mut Fields) -> Result<(), ApiError> {
    match fields.take("modalities") {
        None => Ok(()),
        Some(Value::Array(kinds)) if kinds.iter().all(|kind| kind == "text") => Ok(()),
        Some(_) => Err(ApiError::unsupported_field("modalities", "answers are texts: modalities can be [\"text\"]")),
    }
}

/// The positions that a prompt leaves for its answer.
///
/// # Errors
/// `context_length_exceeded`.
pub fn fit(prompt: usize, image_tokens: usize, served: &Served) -> Result<usize, ApiError> {
    if prompt > served.max_prompt {
        return Err(ApiError::context_length_exceeded(served.max_prompt, prompt, image_tokens));
    }
    Ok(served.context - prompt)
}
