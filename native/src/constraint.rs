//! Constrained answers: the grammars of `mgm-grammar` for the tokens of a model.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use mgm::engine::Constraint;
use mgm::session::ModelText;
use mgm::text::Tokenizer;
use mgm_grammar::{Format, Grammar, Matcher, Vocabulary};

use crate::tools::{CallTrigger, engine_error};

/// Compiled formats that are stored.
const STORED: usize = 64;

/// What was left out of a schema that is not strict, in words.
pub type Ignored = Vec<String>;

/// What an answer must look like, and whether it continues a text.
type Wanted = (Format, bool);

/// A model's tokens, and the formats that were compiled for them last.
#[derive(Debug)]
pub struct Constraints {
    /// For texts that continue another.
    continued: Vocabulary,
    /// For texts that begin, which may lose a space.
    beginning: Vocabulary,
    /// Tokens that are no text, and those that end an answer: bit `id % 32` of word `id / 32`.
    no_text: Arc<[u32]>,
    /// The one that was used last comes first.
    grammars: Mutex<VecDeque<(Wanted, Grammar)>>,
}

impl Constraints {
    /// The first `vocab` tokens of a model. The tokens that end its turns end an answer.
    ///
    /// # Errors
    /// [`mgm_grammar::Error::Vocabulary`] if none ends an answer.
    pub fn new(text: &ModelText, vocab: usize) -> Result<Self, mgm_grammar::Error> {
        let tokenizer = text.tokenizer();
        let ends = text.stop_ids().clone().with_turn_ends(tokenizer);
        let bytes = (0..vocab as u32).map(|id| tokenizer.token_bytes(id));
        let continued = Vocabulary::new(bytes, ends.ids())?;
        let mut no_text = vec![0; continued.mask_words()];
        for id in (0..vocab as u32).filter(|id| ends.contains(*id) || tokenizer.token_bytes(*id).is_none()) {
            no_text[id as usize / 32] |= 1 << (id % 32);
        }
        let mut beginning = continued.clone();
        if drops_leading_space(tokenizer, vocab) {
            beginning = beginning.with_leading_space();
        }
        Ok(Self { continued, beginning, no_text: no_text.into(), grammars: Mutex::default() })
    }

    /// The mask of tokens that are no text, and of those that end an answer.
    pub fn no_text(&self) -> Arc<[u32]> {
        self.no_text.clone()
    }

    /// Matches an answer of this format from its beginning, or a continuation of a text. Reports what was left out of a
    /// schema that is not strict.
    ///
    /// # Errors
    /// As [`Vocabulary::compile`].
    pub fn matcher(&self, format: Format, is_continuation: bool) -> Result<(Matcher, Ignored), mgm_grammar::Error> {
        let wanted = (format, is_continuation);
        let of = |grammar: &Grammar| (grammar.matcher(), grammar.ignored().to_vec());
        // A panic elsewhere leaves the list whole.
        let lock = || self.grammars.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut grammars = lock();
            if let Some(stored) = grammars.iter().position(|(other, _)| *other == wanted)
                && let Some(entry) = grammars.remove(stored)
            {
                let found = of(&entry.1);
                grammars.push_front(entry);
                return Ok(found);
            }
        }
        // Other requests do not wait for it.
        let vocabulary = if is_continuation { &self.continued } else { &self.beginning };
        let grammar = vocabulary.compile(&wanted.0)?;
        let found = of(&grammar);
        let mut grammars = lock();
        grammars.push_front((wanted, grammar));
        grammars.truncate(STORED);
        Ok(found)
    }
}

/// Whether a text loses the space of its first token, as those of SentencePiece models do: they begin with a word, and
/// words begin with a space.
fn drops_leading_space(tokenizer: &Tokenizer, vocab: usize) -> bool {
    let begins_with_space =
        |id: &u32| tokenizer.token_bytes(*id).is_some_and(|bytes| bytes.len() > 1 && bytes[0] == b' ');
    let first = (0..vocab as u32).find(begins_with_space);
    first.is_some_and(|id| !tokenizer.decode(&[id], true).starts_with(' '))
}

/// What constrains an answer of the engine.
#[derive(Debug, Clone)]
pub enum AnswerConstraint {
    /// From the first token on.
    Grammar(Box<Matcher>),
    /// From the first call of a tool on.
    Calls(Box<CallTrigger>),
}

impl Constraint for AnswerConstraint {
    fn fill_mask(&mut self, mask: &mut [u32]) -> mgm::Result<()> {
        match self {
            Self::Grammar(matcher) => matcher.fill_mask(mask).map_err(engine_error),
            Self::Calls(trigger) => trigger.fill_mask(mask),
        }
    }

    fn accept(&mut self, id: u32) -> mgm::Result<()> {
        match self {
            Self::Grammar(matcher) => matcher.accept(id).map_err(engine_error),
            Self::Calls(trigger) => trigger.accept(id),
        }
    }

    fn is_terminated(&self) -> bool {
        match self {
            Self::Grammar(matcher) => matcher.is_terminated(),
            Self::Calls(trigger) => trigger.is_terminated(),
        }
    }

    fn boxed_clone(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}
