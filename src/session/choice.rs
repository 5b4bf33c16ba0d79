//! One answer while it is generated.

use super::{AnswerOptions, Choice, FinishReason, Model};
use crate::generation::AnswerText;

/// Collects the tokens and the text of an answer.
pub(super) struct ChoiceInProgress<'a> {
    model: &'a Model,
    text: AnswerText<'a>,
    choice: Choice,
}

impl<'a> ChoiceInProgress<'a> {
    pub(super) fn new(model: &'a Model, options: &AnswerOptions) -> Self {
        Self {
            model,
            text: AnswerText::new(Some((model.tokenizer(), model.stop_ids())), options),
            choice: Choice {
                token_ids: Vec::new(),
                text: String::new(),
                finish_reason: FinishReason::Length,
                stop_reason: None,
                logprobs: Vec::new(),
            },
        }
    }

    /// Whether a stop token or a stop string ended the answer.
    pub(super) fn has_ended(&self) -> bool {
        self.text.end().is_some()
    }

    pub(super) fn choice(&mut self) -> &mut Choice {
        &mut self.choice
    }

    /// Adds a token. Returns the text to send, if any.
    pub(super) fn push(&mut self, id: u32) -> Option<String> {
        self.choice.token_ids.push(id);
        let text = self.text.push(id);
        self.choice.text.extend(text.as_deref());
        text
    }

    /// Ends the text. Returns what was held back, if anything.
    pub(super) fn finish(&mut self) -> Option<String> {
        let rest = self.text.finish();
        self.choice.text.extend(rest.as_deref());
        if let Some(reason) = self.text.end() {
            self.choice.finish_reason = FinishReason::Stop;
            self.choice.stop_reason.clone_from(reason);
        }
        rest
    }

    /// The answer.
    pub(super) fn into_choice(self) -> Choice {
        let Self { model, mut choice, .. } = self;
        choice.text = match choice.stop_reason {
            // Cut off.
            Some(_) => choice.text.trim().to_owned(),
            None => model.tokenizer().answer(&choice.token_ids),
        };
        choice
    }
}
