//! One answer while it is generated: its text, and what ends it.

use super::{AnswerOptions, Choice, FinishReason, Model, StopReason};
use crate::text::stop_strings::StopStrings;
use crate::text::stream::TextStream;

/// Collects the tokens and the text of an answer.
pub(super) struct ChoiceInProgress<'a> {
    model: &'a Model,
    options: &'a AnswerOptions,
    stream: Option<TextStream<'a>>,
    stop: StopStrings,
    /// All text that was sent.
    sent: String,
    choice: Choice,
    has_ended: bool,
}

impl<'a> ChoiceInProgress<'a> {
    pub(super) fn new(model: &'a Model, options: &'a AnswerOptions) -> Self {
        Self {
            model,
            options,
            stream: Some(TextStream::new(model.tokenizer())),
            stop: StopStrings::new(options.stop.clone()),
            sent: String::new(),
            choice: Choice {
                token_ids: Vec::new(),
                text: String::new(),
                finish_reason: FinishReason::Length,
                stop_reason: None,
                logprobs: Vec::new(),
            },
            has_ended: false,
        }
    }

    /// Whether a stop token or a stop string ended the answer.
    pub(super) fn has_ended(&self) -> bool {
        self.has_ended
    }

    pub(super) fn choice(&mut self) -> &mut Choice {
        &mut self.choice
    }

    /// Adds a token. Returns the text to send, if any.
    pub(super) fn push(&mut self, id: u32) -> Option<String> {
        self.choice.token_ids.push(id);
        let may_end = self.choice.token_ids.len() > self.options.min_tokens;
        let is_asked_for = self.options.stop_token_ids.contains(&id);
        if may_end && (is_asked_for || !self.options.ignore_eos && self.model.is_stop(id)) {
            self.end(is_asked_for.then_some(StopReason::Token(id)));
            return None;
        }
        let text = self.stream.as_mut()?.push(id)?;
        self.send(&text, self.choice.token_ids.len() >= self.options.min_tokens)
    }

    /// The part of a text that cannot begin a stop string.
    fn send(&mut self, text: &str, may_end: bool) -> Option<String> {
        let text = if self.options.stop.is_empty() || !may_end { text.to_owned() } else { self.stop.push(text) };
        if let Some(found) = self.stop.found() {
            self.end(Some(StopReason::String(found.to_owned())));
        }
        self.sent.push_str(&text);
        (!text.is_empty()).then_some(text)
    }

    fn end(&mut self, reason: Option<StopReason>) {
        self.has_ended = true;
        self.choice.finish_reason = FinishReason::Stop;
        self.choice.stop_reason = reason;
    }

    /// Ends the text. Returns what was held back, if anything.
    pub(super) fn finish(&mut self) -> Option<String> {
        let mut rest = String::new();
        if let Some(text) = self.stream.take().and_then(TextStream::finish)
            && self.stop.found().is_none()
        {
            rest.extend(self.send(&text, true));
        }
        let held = self.stop.finish();
        self.sent.push_str(&held);
        rest.push_str(&held);
        (!rest.is_empty()).then_some(rest)
    }

    /// The answer.
    pub(super) fn into_choice(self) -> Choice {
        let Self { mut choice, sent, model, .. } = self;
        choice.text = match choice.stop_reason {
            // Cut off.
            Some(_) => sent.trim().to_owned(),
            None => model.tokenizer().answer(&choice.token_ids),
        };
        choice
    }
}
