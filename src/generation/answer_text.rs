//! The text of an answer while it is generated, and what ends it.

use super::{AnswerOptions, StopReason};
use crate::text::stop::StopIds;
use crate::text::stop_strings::StopStrings;
use crate::text::stream::TextStream;
use crate::text::tokenizer::Tokenizer;

/// Decodes the tokens of an answer, and finds its stop tokens and stop strings.
#[derive(Debug)]
pub struct AnswerText<'a> {
    stream: Option<TextStream<'a>>,
    stop_ids: Option<&'a StopIds>,
    stop_token_ids: Vec<u32>,
    strings: StopStrings,
    has_strings: bool,
    min_tokens: usize,
    tokens: usize,
    /// What ended it, if the caller asked for it.
    end: Option<Option<StopReason>>,
}

impl<'a> AnswerText<'a> {
    /// An empty answer. Without a tokenizer and the model's stop tokens there is no text, and only
    /// [`AnswerOptions::stop_token_ids`] end it.
    pub fn new(text: Option<(&'a Tokenizer, &'a StopIds)>, options: &AnswerOptions) -> Self {
        Self {
            stream: text.map(|(tokenizer, _)| TextStream::new(tokenizer)),
            stop_ids: text.map(|(_, stop_ids)| stop_ids).filter(|_| !options.ignore_eos),
            stop_token_ids: options.stop_token_ids.clone(),
            strings: StopStrings::new(options.stop.clone()),
            has_strings: !options.stop.is_empty(),
            min_tokens: options.min_tokens,
            tokens: 0,
            end: None,
        }
    }

    /// Tokens that end it, and that the first [`AnswerOptions::min_tokens`] tokens may not be.
    pub fn ends(&self) -> impl Iterator<Item = u32> {
        self.stop_ids.into_iter().flat_map(StopIds::ids).chain(&self.stop_token_ids).copied()
    }

    /// Whether a stop token or a stop string ended it, and which, if the caller asked for it.
    pub fn end(&self) -> Option<&Option<StopReason>> {
        self.end.as_ref()
    }

    /// Adds a token. Returns the text that is certain now, in whole characters and without what may become a stop
    /// string.
    pub fn push(&mut self, id: u32) -> Option<String> {
        self.tokens += 1;
        let is_asked_for = self.stop_token_ids.contains(&id);
        let is_end = is_asked_for || self.stop_ids.is_some_and(|ids| ids.contains(id));
        if self.tokens > self.min_tokens && is_end {
            self.end = Some(is_asked_for.then_some(StopReason::Token(id)));
            return None;
        }
        let text = self.stream.as_mut()?.push(id)?;
        self.cut(text, self.tokens >= self.min_tokens)
    }

    /// The part of a text that cannot begin a stop string.
    fn cut(&mut self, text: String, may_end: bool) -> Option<String> {
        let text = if self.has_strings && may_end { self.strings.push(&text) } else { text };
        if let Some(found) = self.strings.found() {
            self.end = Some(Some(StopReason::String(found.to_owned())));
        }
        (!text.is_empty()).then_some(text)
    }

    /// Ends the text. Returns what was held back, if anything.
    pub fn finish(&mut self) -> Option<String> {
        let mut rest = String::new();
        if let Some(text) = self.stream.take().and_then(TextStream::finish)
            && self.strings.found().is_none()
        {
            rest.extend(self.cut(text, true));
        }
        rest.push_str(&self.strings.finish());
        (!rest.is_empty()).then_some(rest)
    }
}
