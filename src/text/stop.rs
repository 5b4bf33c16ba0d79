//! When an answer is over.

use super::conversation::Template;
use super::gguf::END_OF_TURN;
use super::tokenizer::Tokenizer;

/// The ids that end an answer.
///
/// Released configurations forget some: 8B's tokenizer names only `<|end_of_text|>` though turns end with `<|eot_id|>`, and
/// 34B's generation settings name `<|endoftext|>` though turns end with `<|im_end|>`. All that any source names count, and
/// the template's own end of turn.
///
/// Gemma's `<end_of_turn>` does not stop by itself: MGM-2B was trained to write `<end_of_turn>`, a newline and `<eos>`, and
/// the reference waits for `<eos>`; the two before it vanish as a special token and as white space. A configuration
/// that lists it is believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopIds {
    ids: Vec<u32>,
}

impl StopIds {
    /// Gathers the ids: `eos_token_id` of `config.json` and of `generation_config.json` (one or several, or none), the
    /// tokenizer's, and the template's.
    pub fn new(config: &[u32], generation_config: &[u32], tokenizer: &Tokenizer, template: Template) -> Self {
        let own: &[&str] = match template {
            Template::Vicuna | Template::Mistral => &["</s>"],
            Template::Gemma => &["<eos>"],
            Template::ChatMl => &["<|im_end|>", "<|endoftext|>"],
            Template::Llama3 => &["<|end_of_text|>", "<|eot_id|>"],
        };
        let own = own.iter().filter_map(|token| tokenizer.token_id(token));
        Self::from_ids(config.iter().chain(generation_config).copied().chain(tokenizer.eos()).chain(own))
    }

    /// For a model with a template of its own, which does not say what ends a turn: the configured ids, the tokenizer's, and
    /// all special tokens that are known to end turns.
    pub fn for_jinja_template(config: &[u32], tokenizer: &Tokenizer) -> Self {
        let ends = END_OF_TURN.iter().filter_map(|token| tokenizer.token_id(token));
        let ends = ends.filter(|id| tokenizer.is_special(*id));
        Self::from_ids(config.iter().copied().chain(tokenizer.eos()).chain(ends))
    }

    /// The same ids, and all special tokens that are known to end turns.
    pub fn with_turn_ends(self, tokenizer: &Tokenizer) -> Self {
        let ends = Self::for_jinja_template(&[], tokenizer);
        Self::from_ids(self.ids.into_iter().chain(ends.ids))
    }

    fn from_ids(ids: impl Iterator<Item = u32>) -> Self {
        let mut ids: Vec<u32> = ids.collect();
        ids.sort_unstable();
        ids.dedup();
        Self { ids }
    }

    /// Whether this id ends the answer.
    pub fn contains(&self, id: u32) -> bool {
        self.ids.binary_search(&id).is_ok()
    }

    /// All of them, ascending.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }
}
