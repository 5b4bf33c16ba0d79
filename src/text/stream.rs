//! Incremental detokenisation: text to show while the model generates.

use super::decode::State;
use super::tokenizer::Tokenizer;

/// Decodes generated ids incrementally, without special tokens. Bytes of an incomplete character are held back. The
/// concatenated output equals [`Tokenizer::decode`] of all ids; the time is linear in their number.
#[derive(Debug)]
pub struct TextStream<'a> {
    state: State<'a>,
}

impl<'a> TextStream<'a> {
    /// Starts a text.
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { state: tokenizer.decoder().start(true) }
    }

    /// Takes the next id and returns the text that is certain now, if any.
    pub fn push(&mut self, id: u32) -> Option<String> {
        let mut text = String::new();
        self.state.push(id, &mut text);
        (!text.is_empty()).then_some(text)
    }

    /// Ends the text and returns what was held back, if anything.
    pub fn finish(mut self) -> Option<String> {
        let mut text = String::new();
        self.state.finish(&mut text);
        (!text.is_empty()).then_some(text)
    }
}
