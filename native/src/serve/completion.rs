//! What chat completions and completions share: from a prepared request to its answer, whole or as a stream.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::http::HeaderMap;
use axum::response::Response;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout_at};

use super::answer::{AllAnswers, Delta, Finish, Question};
use super::caller::{Caller, on_blocking_thread};
use super::command::Submission;
use super::error::ApiError;
use super::fields::Fields;
use super::logprobs::{chat_logprobs, text_logprobs};
use super::reply::{json_response, random_id, unix_time, with_ignored};
use super::served::Served;
use super::sse::{self, Events, Gone, PING_AFTER};
use super::state::{Server, Ticket};
use super::usage::{Timings, Usage};

use crate::tools::whole_calls;

/// The form of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Chat,
    Text,
}

/// A request that was read.
#[derive(Debug)]
pub struct Prepared {
    pub form: Form,
    /// One for each prompt.
    pub prompts: Vec<(Submission, Question)>,
    pub stream: bool,
    pub include_usage: bool,
    /// Names of fields that had no effect.
    pub ignored: Vec<String>,
}

/// An answer, or an event of a stream.
#[derive(Serialize)]
struct Envelope<'a> {
    id: &'a str,
    object: &'a str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'a str,
    choices: Vec<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timings: Option<Timings>,
}

/// The fields that all events of a stream have.
struct Header {
    form: Form,
    id: String,
    created: u64,
    served: Arc<Served>,
    /// Events without usage say so.
    names_usage: bool,
}

impl Header {
    fn new(prepared: &Prepared, served: &Arc<Served>) -> Self {
        let prefix = match prepared.form {
            Form::Chat => "chatcmpl-",
            Form::Text => "cmpl-",
        };
        Self {
            form: prepared.form,
            id: random_id(prefix),
            created: unix_time(),
            served: served.clone(),
            names_usage: prepared.include_usage,
        }
    }

    fn whole(&self, choices: Vec<Value>, usage: Usage, timings: Timings) -> Envelope<'_> {
        let object = match self.form {
            Form::Chat => "chat.completion",
            Form::Text => "text_completion",
        };
        self.envelope(object, choices, Some(Some(usage)), Some(timings))
    }

    fn chunk(&self, choices: Vec<Value>, usage: Option<Usage>) -> Envelope<'_> {
        let object = match self.form {
            Form::Chat => "chat.completion.chunk",
            Form::Text => "text_completion",
        };
        self.envelope(object, choices, self.names_usage.then_some(usage), None)
    }

    fn envelope<'a>(
        &'a self,
        object: &'a str,
        choices: Vec<Value>,
        usage: Option<Option<Usage>>,
        timings: Option<Timings>,
    ) -> Envelope<'a> {
        let Served { id: model, fingerprint, .. } = &*self.served;
        let created = self.created;
        Envelope { id: &self.id, object, created, model, system_fingerprint: fingerprint, choices, usage, timings }
    }
}

/// Reads a request's body, `prepare`s it on a thread that may wait, and computes its answer.
///
/// # Errors
/// Those of the body, of `prepare` and of the engine before the first byte; while no model is served, why.
pub async fn answer(
    server: &Arc<Server>,
    caller: Caller,
    headers: &HeaderMap,
    body: Body,
    prepare: fn(Fields, &Server, &Served, &Caller) -> Result<Prepared, ApiError>,
) -> Result<Response, ApiError> {
    let deadline = caller.deadline;
    let (served, prepared) = read(server, caller, headers, body, prepare).await?;
    respond(server, &served, prepared, deadline).await
}

/// Reads a request's body and `prepare`s it on a thread that may wait, for the model that is served.
///
/// # Errors
/// Those of the body and of `prepare`; while no model is served, why.
pub async fn read<T: Send + 'static>(
    server: &Arc<Server>,
    caller: Caller,
    headers: &HeaderMap,
    body: Body,
    prepare: fn(Fields, &Server, &Served, &Caller) -> Result<T, ApiError>,
) -> Result<(Arc<Served>, T), ApiError> {
    let served = server.served()?.clone();
    let body = server.bodies.read_json(headers, body).await?;
    let (reading, model) = (server.clone(), served.clone());
    let prepared = on_blocking_thread(move || {
        let fields = Fields::parse(&body.bytes)?;
        drop(body);
        prepare(fields, &reading, &model, &caller)
    });
    Ok((served, prepared.await?))
}

/// Queues prompts, all of them or none, after their images are decoded.
///
/// # Errors
/// `queue_full`, and those of images.
pub async fn submit(
    server: &Arc<Server>,
    served: &Served,
    mut prompts: Vec<(Submission, Question)>,
) -> Result<Vec<(Ticket, Question)>, ApiError> {
    let counts = prompts.iter().map(|(_, question)| question.options.n);
    let permits: Vec<_> = counts.map(|count| server.admit(served, count)).collect::<Result<_, _>>()?;
    for (Submission { prompt, salt, .. }, _) in &mut prompts {
        prompt.load_images(&server.images, served, salt).await?;
    }
    let submitted = prompts.into_iter().zip(permits);
    Ok(submitted.map(|((submission, question), permit)| (server.submit(submission, permit), question)).collect())
}

/// Computes the answer to a request that was read.
///
/// # Errors
/// `queue_full`, those of images, and those that the engine reports before the first byte.
async fn respond(
    server: &Arc<Server>,
    served: &Arc<Served>,
    mut prepared: Prepared,
    deadline: Instant,
) -> Result<Response, ApiError> {
    let header = Header::new(&prepared, served);
    let mut questions = submit(server, served, std::mem::take(&mut prepared.prompts)).await?;
    if !prepared.stream {
        let response = whole(server, &header, &questions).await?;
        questions.iter_mut().for_each(|(ticket, _)| ticket.finish());
        return Ok(with_ignored(response, &prepared.ignored));
    }
    let (events, response) = sse::stream(deadline.into());
    let server = server.clone();
    tokio::spawn(async move {
        if stream(&server, &header, &questions, events, deadline).await.is_ok() {
            questions.iter_mut().for_each(|(ticket, _)| ticket.finish());
        }
        // Otherwise the client went away: the end of the tickets cancels the request.
    });
    Ok(with_ignored(response, &prepared.ignored))
}

async fn whole(server: &Server, header: &Header, questions: &[(Ticket, Question)]) -> Result<Response, ApiError> {
    let mut answers = AllAnswers::new(questions, &header.served);
    let mut choices: Vec<Delta> = (0..answers.count()).map(Delta::new).collect();
    while let Some(deltas) = answers.next().await? {
        for delta in deltas {
            if let Some(choice) = choices.get_mut(delta.choice) {
                choice.text += &delta.text;
                choice.calls.extend(delta.calls);
                choice.logprobs.extend(delta.logprobs);
                choice.finish = choice.finish.take().or(delta.finish);
            }
        }
    }
    server.metrics.answers(answers.usage(), answers.timings());
    let has_logprobs = questions.iter().any(|(_, question)| question.options.top_logprobs.is_some());
    let choices = choices.into_iter().map(|choice| whole_choice(header, choice, has_logprobs)).collect();
    Ok(json_response(&header.whole(choices, answers.usage(), answers.timings())))
}

fn whole_choice(header: &Header, choice: Delta, has_logprobs: bool) -> Value {
    let Delta { choice: index, text, calls, logprobs, finish } = choice;
    let tokenizer = header.served.text.tokenizer();
    let Finish { reason, stop } = finish.unwrap_or(Finish { reason: "length", stop: None });
    let mut value = match header.form {
        Form::Chat => {
            let logprobs = has_logprobs.then(|| chat_logprobs(&logprobs, tokenizer));
            let mut message = json!({ "role": "assistant", "content": text, "refusal": null });
            if !calls.is_empty() {
                if text.is_empty() {
                    message["content"] = Value::Null;
                }
                message["tool_calls"] = whole_calls(calls);
            }
            json!({ "index": index, "message": message, "logprobs": logprobs, "finish_reason": reason })
        }
        Form::Text => {
            let logprobs = has_logprobs.then(|| text_logprobs(&logprobs, tokenizer, 0));
            json!({ "index": index, "text": text, "logprobs": logprobs, "finish_reason": reason })
        }
    };
    if let Some(stop) = stop {
        value["stop_reason"] = stop;
    }
    value
}

/// Sends the events of a stream. It ends early if the client goes away.
async fn stream(
    server: &Server,
    header: &Header,
    questions: &[(Ticket, Question)],
    events: Events,
    deadline: Instant,
) -> Result<(), Gone> {
    let mut answers = AllAnswers::new(questions, &header.served);
    if header.form == Form::Chat {
        for index in 0..answers.count() {
            let delta = json!({ "role": "assistant", "content": "" });
            let choice = json!({ "index": index, "delta": delta, "logprobs": null, "finish_reason": null });
            events.send(&header.chunk(vec![choice], None)).await?;
        }
    }
    let mut writers: Vec<ChoiceWriter> = (0..answers.count()).map(|_| ChoiceWriter::default()).collect();
    loop {
        let next = tokio::select! {
            next = timeout_at(deadline.into(), answers.next()) => next,
            () = sleep(PING_AFTER) => {
                events.ping().await?;
                continue;
            }
            () = events.closed() => return Err(Gone),
        };
        let deltas = match next.unwrap_or_else(|_| Err(ApiError::deadline_exceeded())) {
            Ok(Some(deltas)) => deltas,
            Ok(None) => break,
            Err(error) => {
                events.fail(&error);
                return Err(Gone);
            }
        };
        for delta in deltas {
            let Some(writer) = writers.get_mut(delta.choice) else { continue };
            for choice in writer.chunks(header, delta) {
                events.send(&header.chunk(vec![choice], None)).await?;
            }
        }
    }
    server.metrics.answers(answers.usage(), answers.timings());
    if header.names_usage {
        events.send(&header.chunk(Vec::new(), Some(answers.usage()))).await?;
    }
    events.done().await
}

/// Writes the parts of an answer. Log-probabilities wait for the text that they belong to.
#[derive(Default)]
struct ChoiceWriter {
    logprobs: Vec<mgm::engine::TokenLogprobs>,
    /// Bytes of the text that were sent.
    sent: usize,
}

impl ChoiceWriter {
    fn chunks(&mut self, header: &Header, delta: Delta) -> Vec<Value> {
        let Delta { choice: index, text, calls, logprobs, finish } = delta;
        self.logprobs.extend(logprobs);
        let tokenizer = header.served.text.tokenizer();
        let mut chunks = Vec::new();
        if !text.is_empty() || calls.is_empty() && finish.is_some() && !self.logprobs.is_empty() {
            let waiting = std::mem::take(&mut self.logprobs);
            chunks.push(match header.form {
                Form::Chat => {
                    let logprobs = (!waiting.is_empty()).then(|| chat_logprobs(&waiting, tokenizer));
                    let delta = json!({ "content": text });
                    json!({ "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": null })
                }
                Form::Text => {
                    let logprobs = (!waiting.is_empty()).then(|| text_logprobs(&waiting, tokenizer, self.sent));
                    json!({ "index": index, "text": text, "logprobs": logprobs, "finish_reason": null })
                }
            });
            self.sent += text.len();
        }
        if !calls.is_empty() {
            let waiting = std::mem::take(&mut self.logprobs);
            let logprobs = (!waiting.is_empty()).then(|| chat_logprobs(&waiting, tokenizer));
            let delta = json!({ "tool_calls": calls });
            chunks.push(json!({ "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": null }));
        }
        if let Some(Finish { reason, stop }) = finish {
            let mut end = match header.form {
                Form::Chat => json!({ "index": index, "delta": {}, "logprobs": null, "finish_reason": reason }),
                Form::Text => json!({ "index": index, "text": "", "logprobs": null, "finish_reason": reason }),
            };
            if let Some(stop) = stop {
                end["stop_reason"] = stop;
            }
            chunks.push(end);
        }
        chunks
    }
}
