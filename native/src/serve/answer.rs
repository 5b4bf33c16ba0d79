//! Answers while they are generated.

use std::time::{Duration, Instant};

use futures_util::future::select_all;
use mgm::engine::{Event, FinishReason, StopReason, TokenLogprobs};
use mgm::session::AnswerOptions;
use serde_json::Value;

use super::error::ApiError;
use super::mailbox::Mail;
use super::reply::random_id;
use super::served::Served;
use super::state::Ticket;
use super::usage::{PromptDetails, Timings, Usage};

use crate::tools::{CallDelta, CallReader, ToolStyle};

/// Why an answer ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Finish {
    /// `stop`, `length` or `tool_calls`.
    pub reason: &'static str,
    /// The stop string or the token, if the request named it.
    pub stop: Option<Value>,
}

/// The next part of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Delta {
    pub choice: usize,
    pub text: String,
    /// Calls of tools, and more of their arguments.
    pub calls: Vec<CallDelta>,
    pub logprobs: Vec<TokenLogprobs>,
    pub finish: Option<Finish>,
}

impl Delta {
    pub fn new(choice: usize) -> Self {
        Self { choice, text: String::new(), calls: Vec::new(), logprobs: Vec::new(), finish: None }
    }
}

/// What the answers to one prompt share.
#[derive(Debug, Clone)]
pub struct Question {
    pub options: AnswerOptions,
    /// Positions of the prompt, and those of images among them.
    pub prompt_tokens: usize,
    pub image_tokens: usize,
    /// The answer continues the prompt's text, rather than being a text of its own, which is trimmed.
    pub is_continuation: bool,
    /// How it calls tools, if it may.
    pub calls: Option<ToolStyle>,
    pub arrived: Instant,
}

/// Reads the answers to several prompts. They are numbered one prompt's after the other's.
#[derive(Debug)]
pub struct AllAnswers<'a>(Vec<Answers<'a>>);

impl<'a> AllAnswers<'a> {
    pub fn new(questions: &'a [(Ticket, Question)], served: &'a Served) -> Self {
        Self(questions.iter().map(|(ticket, question)| Answers::new(ticket, served, question)).collect())
    }

    /// The next parts, at most one of each answer. `None` after the last. It can be dropped while it waits.
    ///
    /// # Errors
    /// Those that end the request.
    pub async fn next(&mut self) -> Result<Option<Vec<Delta>>, ApiError> {
        let mut first = 0;
        let mut open = Vec::new();
        for answers in &mut self.0 {
            let offset = first;
            first += answers.texts.len();
            if !answers.has_ended() {
                open.push(Box::pin(async move { (offset, answers.next().await) }));
            }
        }
        if open.is_empty() {
            return Ok(None);
        }
        let ((offset, deltas), ..) = select_all(open).await;
        let mut deltas = deltas?;
        deltas.iter_mut().for_each(|delta| delta.choice += offset);
        Ok(Some(deltas))
    }

    /// The number of answers.
    pub fn count(&self) -> usize {
        self.0.iter().map(|answers| answers.texts.len()).sum()
    }

    pub fn usage(&self) -> Usage {
        self.0.iter().fold(Usage::default(), |usage, answers| usage.and(answers.usage()))
    }

    /// Those of the first prompt, and of all until now.
    pub fn timings(&self) -> Timings {
        self.0.first().map_or_else(Timings::default, |answers| Timings {
            total_ms: milliseconds(answers.question.arrived.elapsed()),
            ..answers.timings
        })
    }
}

/// Reads the answers to one prompt as they come.
#[derive(Debug)]
struct Answers<'a> {
    ticket: &'a Ticket,
    served: &'a Served,
    question: &'a Question,
    texts: Vec<AnswerText>,
    cached_tokens: usize,
    timings: Timings,
}

impl<'a> Answers<'a> {
    fn new(ticket: &'a Ticket, served: &'a Served, question: &'a Question) -> Self {
        let texts = (0..question.options.n).map(|_| AnswerText::new(question)).collect();
        Self { ticket, served, question, texts, cached_tokens: 0, timings: Timings::default() }
    }

    fn has_ended(&self) -> bool {
        self.texts.iter().all(|text| text.has_ended)
    }

    async fn next(&mut self) -> Result<Vec<Delta>, ApiError> {
        let Mail { events, failed, .. } = self.ticket.mailbox.take().await;
        let mut deltas: Vec<Delta> = Vec::new();
        for event in events {
            self.read(event, &mut deltas)?;
        }
        failed.map_or(Ok(deltas), Err)
    }

    fn read(&mut self, event: Event, deltas: &mut Vec<Delta>) -> Result<(), ApiError> {
        match event {
            Event::Delta { choice, ids, text, logprobs } => {
                if let Some(answer) = self.texts.get_mut(choice) {
                    let delta = delta_of(deltas, choice);
                    answer.push(&ids, &text, self.served, delta);
                    delta.logprobs.extend(logprobs);
                }
            }
            Event::Done { choice, reason, stop_reason, usage, timings } => {
                let Some(answer) = self.texts.get_mut(choice) else { return Ok(()) };
                answer.has_ended = true;
                answer.tokens = usage.generated;
                self.cached_tokens = self.cached_tokens.max(usage.cached);
                self.timings.queue_ms = milliseconds(timings.queued);
                self.timings.prefill_ms = milliseconds(timings.prefill);
                self.timings.decode_ms = self.timings.decode_ms.max(milliseconds(timings.decode));
                let stop = match stop_reason {
                    Some(StopReason::String(text)) => Some(text.into()),
                    Some(StopReason::Token(id)) => Some(id.into()),
                    _ => None,
                };
                let delta = delta_of(deltas, choice);
                let has_called = answer.finish(delta);
                let reason = match reason {
                    FinishReason::Length => "length",
                    _ if has_called => "tool_calls",
                    _ => "stop",
                };
                delta.finish = Some(Finish { reason, stop });
            }
            Event::Failed { error, .. } => return Err(ApiError::of_engine(&error)),
            Event::Started { .. } | Event::Encoding { .. } | Event::Prefill { .. } => {}
        }
        Ok(())
    }

    fn usage(&self) -> Usage {
        let prompt_tokens = self.question.prompt_tokens;
        let completion_tokens = self.texts.iter().map(|text| text.tokens).sum();
        Usage {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptDetails {
                cached_tokens: self.cached_tokens,
                image_tokens: self.question.image_tokens,
            },
        }
    }
}

fn delta_of(deltas: &mut Vec<Delta>, choice: usize) -> &mut Delta {
    let index = deltas.iter().position(|delta| delta.choice == choice).unwrap_or_else(|| {
        deltas.push(Delta::new(choice));
        deltas.len() - 1
    });
    &mut deltas[index]
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// The text of one answer.
#[derive(Debug)]
struct AnswerText {
    trim: Option<Trim>,
    calls: Option<CallReader>,
    tokens: usize,
    has_ended: bool,
}

impl AnswerText {
    fn new(question: &Question) -> Self {
        let trim = (!question.is_continuation).then(Trim::default);
        Self { trim, calls: question.calls.map(|style| CallReader::new(style, random_id)), tokens: 0, has_ended: false }
    }

    /// Adds what can be sent of new text to `delta`.
    fn push(&mut self, ids: &[u32], text: &str, served: &Served, delta: &mut Delta) {
        let is_first = self.tokens == 0;
        self.tokens += ids.len();
        delta.text += &match &mut self.trim {
            Some(trim) => match &mut self.calls {
                Some(calls) => trim.push(&calls.push(ids, text, &mut delta.calls)),
                None => trim.push(text),
            },
            None => {
                // SentencePiece drops the space at a text's beginning. This one continues the prompt.
                let bytes = ids.first().filter(|_| is_first).and_then(|id| served.text.tokenizer().token_bytes(*id));
                let lacks_space = bytes.is_some_and(|bytes| bytes.first() == Some(&b' ')) && !text.starts_with(' ');
                if lacks_space { format!(" {text}") } else { text.to_owned() }
            }
        };
    }

    /// Ends the text. Adds the rest to `delta`. Returns whether it calls tools.
    fn finish(&mut self, delta: &mut Delta) -> bool {
        let (Some(trim), Some(calls)) = (&mut self.trim, &mut self.calls) else { return false };
        delta.text += &trim.push(&calls.finish(&mut delta.calls));
        calls.has_called()
    }
}

/// Removes white space around a streamed text.
#[derive(Debug, Default)]
struct Trim {
    has_begun: bool,
    /// White space after which more text may come.
    held: String,
}

impl Trim {
    fn push(&mut self, text: &str) -> String {
        let text = if self.has_begun { text } else { text.trim_start() };
        let end = text.trim_end();
        if end.is_empty() {
            if self.has_begun {
                self.held += text;
            }
            return String::new();
        }
        self.has_begun = true;
        let mut sent = std::mem::take(&mut self.held);
        sent += end;
        self.held = text[end.len()..].to_owned();
        sent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_streamed_text_is_trimmed_as_a_whole_one() {
        let text = " \n a  b\u{a0}\n\nc \t\n";
        let characters: Vec<char> = text.chars().collect();
        for first in 0..=characters.len() {
            for second in first..=characters.len() {
                let parts = [&characters[..first], &characters[first..second], &characters[second..]];
                let mut trim = Trim::default();
                let joined: String = parts.iter().map(|part| trim.push(&part.iter().collect::<String>())).collect();
                assert_eq!(joined, text.trim(), "split at {first} and {second}");
            }
        }
    }
}
