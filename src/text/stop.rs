//! The ids that end an answer.

use super::conversation::Template;
use super::gguf::END_OF_TURN;
use super::tokenizer::Tokenizer;

/// The ids that end an answer.
///
/// Released configurations are incomplete: 8B's tokenizer names only `<|end_of_text|>` although turns end with
/// `<|eot_id|>`, and 34B's generation settings name `<|endoftext|>` although turns end with `<|im_end|>`. So the ids of
/// all sources count, and the template's end of turn.
///
/// Gemma's `<end_of_turn>` alone does not end an answer, unless the configuration lists it: MGM-2B was trained to write
/// `<end_of_turn>`, a newline and `<eos>`, and the reference waits for `<eos>`. The two before it are dropped as a
/// special token and as white space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopIds {
    ids: Vec<u32>,
}

impl StopIds {
    /// The ids of `eos_token_id` in `config.json` and in `generation_config.json`, of the tokenizer, and of the
    /// template.
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

    /// For a model with a Jinja template, which does not declare the end of a turn: the configured ids, the
    /// tokenizer's, and all special tokens that are known to end turns.
    pub fn for_jinja_template(config: &[u32], tokenizer: &Tokenizer) -> Self {
        // gpt-oss ends answers with these two, and messages within an answer with `<|end|>`.
        let harmony = ["<|return|>", "<|call|>"].iter().all(|token| tokenizer.token_id(token).is_some());
        let ends = END_OF_TURN.iter().filter(|token| !harmony || **token != "<|end|>");
        let ends = ends.filter_map(|token| tokenizer.token_id(token)).filter(|id| tokenizer.is_special(*id));
        Self::from_ids(config.iter().copied().chain(tokenizer.eos()).chain(ends))
    }

    /// These ids plus all special tokens that are known to end turns.
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

    /// All ids, ascending.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }
}
