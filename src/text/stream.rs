//! Incremental detokenisation: text to show while the model is still writing.

use super::decode::State;
use super::tokenizer::Tokenizer;

/// Turns generated ids into text piece by piece, special tokens left out. Never shows half a character: bytes that may
/// still become one are held back. What is emitted, put together, is exactly [`Tokenizer::decode`] of all ids; the time
/// is linear in their number.
#[derive(Debug)]
pub struct TextStream<'a> {
    state: State<'a>,
}

impl<'a> TextStream<'a> {
    /// Begins a text.
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { state: tokenizer.decoder().start(true) }
    }

    /// Takes the next id; the text that is certain now, if any.
    pub fn push(&mut self, id: u32) -> Option<String> {
        let mut text = String::new();
        self.state.push(id, &mut text);
        (!text.is_empty()).then_some(text)
    }

    /// No more ids come: what was held back, if anything.
    pub fn finish(mut self) -> Option<String> {
        let mut text = String::new();
        self.state.finish(&mut text);
        (!text.is_empty()).then_some(text)
    }
}
