//! `POST /v1/responses`, translated to chat completions. Nothing is stored: each request has its whole conversation.

use std::sync::Arc;
use std::time::Instant;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use serde_json::{Map, Value, json};
use tokio::time::{sleep, timeout_at};

use super::answer::{AllAnswers, Finish, Question};
use super::caller::Caller;
use super::chat;
use super::completion::{Prepared, read, submit};
use super::error::ApiError;
use super::fields::{Fields, unexpected};
use super::reply::{json_response, random_id, unix_time, with_ignored};
use super::served::Served;
use super::sse::{self, Events, Gone, PING_AFTER};
use super::state::{Server, Ticket};
use super::usage::Usage;

/// Fields that would change the answer, and what to do instead.
const UNSUPPORTED: [(&str, &str); 10] = [
    ("previous_response_id", "nothing is stored; send the whole conversation as input"),
    ("conversation", "nothing is stored; send the whole conversation as input"),
    ("background", "wait for the answer, or stream it"),
    ("prompt", "send its text as instructions and input"),
    ("tools", "use /v1/chat/completions"),
    ("max_tool_calls", "leave it out"),
    ("logprobs", "use /v1/chat/completions"),
    ("top_logprobs", "use /v1/chat/completions"),
    ("n", "use /v1/chat/completions"),
    ("messages", "send them as input"),
];

/// Fields that have no effect here, besides those of chat completions.
const WITHOUT_EFFECT: [&str; 4] = ["include", "reasoning", "truncation", "prompt_cache_retention"];

/// What the answer needs of the request.
struct Echo {
    /// The fields that it repeats.
    fields: Map<String, Value>,
    /// The message of the chat completion that is the first of the input.
    first: usize,
}

pub async fn respond(
    State(server): State<Arc<Server>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let deadline = caller.deadline;
    let (served, (mut prepared, echo)) = read(&server, caller, &headers, body, prepare).await?;
    let submitted = submit(&server, &served, std::mem::take(&mut prepared.prompts)).await;
    // Images are decoded now.
    let mut questions = submitted.map_err(|error| error.map_param(|param| own_param(param, echo.first)))?;
    let writer = Writer { id: random_id("resp_"), item: random_id("msg_"), created: unix_time(), echo, served };
    let response = if prepared.stream {
        let (events, response) = sse::stream(deadline.into());
        tokio::spawn(async move {
            if stream(&server, &writer, &questions, events, deadline).await.is_ok() {
                questions.iter_mut().for_each(|(ticket, _)| ticket.finish());
            }
            // Otherwise the client went away: the end of the tickets cancels the request.
        });
        response
    } else {
        let response = whole(&server, &writer, &questions).await?;
        questions.iter_mut().for_each(|(ticket, _)| ticket.finish());
        response
    };
    Ok(with_ignored(response, &prepared.ignored))
}

/// Translates a request. Errors name its own fields.
fn prepare(
    mut fields: Fields,
    server: &Server,
    served: &Served,
    caller: &Caller,
) -> Result<(Prepared, Echo), ApiError> {
    fields.refuse(&UNSUPPORTED)?;
    fields.accept(&WITHOUT_EFFECT);
    let mut echo = Map::new();
    let instructions = fields.text("instructions")?;
    let mut messages = Vec::new();
    if let Some(text) = &instructions {
        messages.push(json!({ "role": "system", "content": text }));
    }
    echo.insert("instructions".to_owned(), instructions.into());
    let first = messages.len();
    messages.extend(input(fields.take("input"))?);
    fields.insert("messages", messages.into());
    let max_tokens = fields.integer("max_output_tokens", 1..=i64::MAX)?;
    echo.insert("max_output_tokens".to_owned(), max_tokens.into());
    fields.insert("max_completion_tokens", max_tokens.into());
    let format = text_format(fields.take("text"))?;
    echo.insert("text".to_owned(), json!({ "format": format.clone().unwrap_or_else(|| json!({ "type": "text" })) }));
    if let Some(format) = format {
        fields.insert("response_format", chat_format(format));
    }
    for name in ["temperature", "top_p", "metadata", "user"] {
        let value = fields.take(name);
        echo.insert(name.to_owned(), value.clone().unwrap_or_default());
        fields.insert(name, value.unwrap_or_default());
    }
    let prepared = chat::prepare(fields, server, served, caller);
    let prepared = prepared.map_err(|error| error.map_param(|param| own_param(param, first)))?;
    Ok((prepared, Echo { fields: echo, first }))
}

/// The name of a field of a chat completion, in this request. `first`: the message that is the first of the input.
fn own_param(param: &str, first: usize) -> String {
    let index = param.strip_prefix("messages[").and_then(|rest| rest.split_once(']'));
    if let Some((index, rest)) = index
        && let Some(index) = index.parse::<usize>().ok().and_then(|index| index.checked_sub(first))
    {
        return format!("input[{index}]{rest}");
    }
    match param {
        "messages" => "input".to_owned(),
        "max_completion_tokens" => "max_output_tokens".to_owned(),
        "response_format" => "text.format".to_owned(),
        param => param.to_owned(),
    }
}

/// The messages of the input: a text, or a list of items.
fn input(value: Option<Value>) -> Result<Vec<Value>, ApiError> {
    match value {
        Some(text @ Value::String(_)) => Ok(vec![json!({ "role": "user", "content": text })]),
        Some(Value::Array(items)) => {
            let items = items.into_iter().enumerate().filter_map(|(index, item)| {
                let param = format!("input[{index}]");
                match item {
                    Value::Object(item) => message(item, &param).transpose(),
                    item => Some(Err(unexpected(&param, &item, "an object"))),
                }
            });
            items.collect()
        }
        value => Err(unexpected("input", &value.unwrap_or_default(), "a text or a list of items")),
    }
}

/// An item as a message. `None` if it has no effect.
fn message(mut item: Map<String, Value>, param: &str) -> Result<Option<Value>, ApiError> {
    let kind = item.remove("type").filter(|kind| !kind.is_null()).unwrap_or_else(|| "message".into());
    let mut take = |name: &str| item.remove(name).unwrap_or_default();
    match kind.as_str() {
        Some("message") => {
            let (role, content) = (take("role"), take("content"));
            let content = match content {
                Value::Array(parts) => parts.into_iter().map(part).collect(),
                content => content,
            };
            Ok(Some(json!({ "role": role, "content": content })))
        }
        // How a model came to its answer is not in its prompt.
        Some("reasoning") => Ok(None),
        Some("function_call") => {
            let function = json!({ "name": take("name"), "arguments": take("arguments") });
            let call = json!({ "id": take("call_id"), "type": "function", "function": function });
            Ok(Some(json!({ "role": "assistant", "content": null, "tool_calls": [call] })))
        }
        Some("function_call_output") => {
            Ok(Some(json!({ "role": "tool", "tool_call_id": take("call_id"), "content": take("output") })))
        }
        Some(kind) => {
            let kind: String = kind.chars().take(40).collect();
            Err(ApiError::unsupported_field(param, format!("{param} is an item of the type {kind:?}: send messages")))
        }
        None => Err(unexpected(&format!("{param}.type"), &kind, "a text")),
    }
}

/// A part of a message as that of a chat completion. What is wrong with it is found there.
fn part(part: Value) -> Value {
    let Value::Object(mut part) = part else { return part };
    let kind = part.get("type").and_then(Value::as_str).unwrap_or_default();
    match kind {
        "input_text" | "output_text" => json!({ "type": "text", "text": part.remove("text") }),
        "input_image" => json!({
            "type": "image_url",
            "image_url": { "url": part.remove("image_url"), "detail": part.remove("detail") },
        }),
        "input_file" => json!({ "type": "file" }),
        _ => part.into(),
    }
}

/// `text.format`.
fn text_format(value: Option<Value>) -> Result<Option<Value>, ApiError> {
    match value {
        None => Ok(None),
        Some(Value::Object(mut text)) => Ok(text.remove("format").filter(|format| !format.is_null())),
        Some(value) => Err(unexpected("text", &value, "an object with a format")),
    }
}

/// The same as `response_format`: a schema's fields are one level deeper there.
fn chat_format(format: Value) -> Value {
    match format {
        Value::Object(mut fields) if fields.get("type").is_some_and(|kind| kind == "json_schema") => {
            fields.remove("type");
            json!({ "type": "json_schema", "json_schema": fields })
        }
        format => format,
    }
}

/// Writes a response.
struct Writer {
    id: String,
    /// The id of its message.
    item: String,
    created: u64,
    echo: Echo,
    served: Arc<Served>,
}

impl Writer {
    /// The response, in progress or finished.
    fn response(&self, end: Option<(&str, &Finish, Usage)>) -> Value {
        let mut response = self.echo.fields.clone();
        let (status, incomplete) = match end {
            None => ("in_progress", Value::Null),
            Some((_, finish, _)) if finish.reason == "length" => {
                ("incomplete", json!({ "reason": "max_output_tokens" }))
            }
            Some(_) => ("completed", Value::Null),
        };
        let output: Vec<Value> = end.iter().map(|(text, finish, _)| self.message(Some((text, finish)))).collect();
        let usage = end.map(|(_, _, usage)| {
            json!({
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": usage.prompt_tokens_details,
                "output_tokens": usage.completion_tokens,
                "output_tokens_details": { "reasoning_tokens": 0 },
                "total_tokens": usage.total_tokens,
            })
        });
        for (name, value) in [
            ("id", json!(self.id)),
            ("object", "response".into()),
            ("created_at", self.created.into()),
            ("status", status.into()),
            ("error", Value::Null),
            ("incomplete_details", incomplete),
            ("model", json!(self.served.id)),
            ("output", output.into()),
            ("parallel_tool_calls", true.into()),
            ("previous_response_id", Value::Null),
            ("store", false.into()),
            ("tool_choice", "auto".into()),
            ("tools", json!([])),
            ("truncation", "disabled".into()),
            ("usage", usage.unwrap_or_default()),
        ] {
            response.insert(name.to_owned(), value);
        }
        response.into()
    }

    /// Its message, in progress or finished.
    fn message(&self, end: Option<(&str, &Finish)>) -> Value {
        let status = match end {
            None => "in_progress",
            Some((_, finish)) if finish.reason == "length" => "incomplete",
            Some(_) => "completed",
        };
        let content: Vec<Value> = end.iter().map(|(text, _)| text_part(text)).collect();
        json!({ "id": self.item, "type": "message", "status": status, "role": "assistant", "content": content })
    }
}

fn text_part(text: &str) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": [] })
}

/// Waits for the answer.
async fn whole(server: &Server, writer: &Writer, questions: &[(Ticket, Question)]) -> Result<Response, ApiError> {
    let mut answers = AllAnswers::new(questions, &writer.served);
    let (mut text, mut finish) = (String::new(), Finish { reason: "length", stop: None });
    while let Some(deltas) = answers.next().await? {
        for delta in deltas {
            text += &delta.text;
            finish = delta.finish.unwrap_or(finish);
        }
    }
    server.metrics.answers(answers.usage(), answers.timings());
    Ok(json_response(&writer.response(Some((&text, &finish, answers.usage())))))
}

/// Numbers the events of a stream.
struct Numbered {
    events: Events,
    next: u64,
}

impl Numbered {
    async fn send(&mut self, name: &str, mut fields: Value) -> Result<(), Gone> {
        fields["type"] = name.into();
        fields["sequence_number"] = self.next.into();
        self.next += 1;
        self.events.send_named(name, &fields).await
    }
}

/// Sends the events of a stream. It ends early if the client goes away.
async fn stream(
    server: &Server,
    writer: &Writer,
    questions: &[(Ticket, Question)],
    events: Events,
    deadline: Instant,
) -> Result<(), Gone> {
    let mut events = Numbered { events, next: 0 };
    let place = json!({ "item_id": writer.item, "output_index": 0, "content_index": 0 });
    let at = |name: &str, value: Value| {
        let mut fields = place.clone();
        fields[name] = value;
        fields
    };
    events.send("response.created", json!({ "response": writer.response(None) })).await?;
    events.send("response.in_progress", json!({ "response": writer.response(None) })).await?;
    let item = |end| json!({ "output_index": 0, "item": writer.message(end) });
    events.send("response.output_item.added", item(None)).await?;
    events.send("response.content_part.added", at("part", text_part(""))).await?;
    let mut answers = AllAnswers::new(questions, &writer.served);
    let (mut text, mut finish) = (String::new(), Finish { reason: "length", stop: None });
    loop {
        let next = tokio::select! {
            next = timeout_at(deadline.into(), answers.next()) => next,
            () = sleep(PING_AFTER) => {
                events.events.ping().await?;
                continue;
            }
            () = events.events.closed() => return Err(Gone),
        };
        let deltas = match next.unwrap_or_else(|_| Err(ApiError::deadline_exceeded())) {
            Ok(Some(deltas)) => deltas,
            Ok(None) => break,
            Err(error) => {
                events.events.fail(&error);
                return Err(Gone);
            }
        };
        for delta in deltas {
            finish = delta.finish.unwrap_or(finish);
            if !delta.text.is_empty() {
                text += &delta.text;
                let mut fields = at("delta", delta.text.into());
                fields["logprobs"] = json!([]);
                events.send("response.output_text.delta", fields).await?;
            }
        }
    }
    server.metrics.answers(answers.usage(), answers.timings());
    let mut fields = at("text", text.as_str().into());
    fields["logprobs"] = json!([]);
    events.send("response.output_text.done", fields).await?;
    events.send("response.content_part.done", at("part", text_part(&text))).await?;
    events.send("response.output_item.done", item(Some((text.as_str(), &finish)))).await?;
    let name = if finish.reason == "length" { "response.incomplete" } else { "response.completed" };
    let response = writer.response(Some((&text, &finish, answers.usage())));
    events.send(name, json!({ "response": response })).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_become_messages() {
        let items = json!([
            { "role": "user", "content": "a" },
            { "type": "message", "role": "user", "content": [{ "type": "input_text", "text": "b" },
                { "type": "input_image", "image_url": "data:x" }] },
            { "type": "reasoning", "summary": [] },
            { "type": "function_call", "call_id": "c", "name": "f", "arguments": "{}" },
            { "type": "function_call_output", "call_id": "c", "output": "1" },
        ]);
        let call = json!({ "id": "c", "type": "function", "function": { "name": "f", "arguments": "{}" } });
        let expected = [
            json!({ "role": "user", "content": "a" }),
            json!({ "role": "user", "content": [{ "type": "text", "text": "b" },
                { "type": "image_url", "image_url": { "url": "data:x", "detail": null } }] }),
            json!({ "role": "assistant", "content": null, "tool_calls": [call] }),
            json!({ "role": "tool", "tool_call_id": "c", "content": "1" }),
        ];
        assert_eq!(input(Some(items)).as_deref(), Ok(&expected[..]));
        assert_eq!(input(Some("a".into())), Ok(vec![json!({ "role": "user", "content": "a" })]));
        for wrong in [json!(7), json!([7]), json!([{ "type": 7 }]), json!([{ "type": "item_reference" }])] {
            assert!(input(Some(wrong.clone())).is_err(), "{wrong}");
        }
    }

    #[test]
    fn errors_name_the_fields_of_the_request() {
        assert_eq!(own_param("messages[2].content[0].image_url", 1), "input[1].content[0].image_url");
        assert_eq!(own_param("messages", 1), "input");
        assert_eq!(own_param("max_completion_tokens", 0), "max_output_tokens");
        assert_eq!(own_param("temperature", 0), "temperature");
    }
}
