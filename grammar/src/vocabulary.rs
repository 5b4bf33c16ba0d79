//! The tokens of a model, and grammars compiled for them.

use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher as Parser, ParserFactory, earley::SlicedBiasComputer};

use crate::matcher::reason;
use crate::{Error, Format, Matcher, schema};

/// Bytes of a token at most. Longer ones are never in a mask.
const MOST_TOKEN_BYTES: usize = 1 << 12;

/// The tokens of a model as a trie of their bytes. Clones share it.
#[derive(Clone)]
pub struct Vocabulary {
    factory: Arc<ParserFactory>,
    size: usize,
    /// Tokens that end an answer.
    ends: Arc<[u32]>,
    leading_space: bool,
}

impl std::fmt::Debug for Vocabulary {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Vocabulary").field("size", &self.size).finish_non_exhaustive()
    }
}

impl Vocabulary {
    /// The bytes of each token by id; tokens without any are never in a mask. `ends`: the tokens that end an answer.
    ///
    /// # Errors
    /// [`Error::Vocabulary`] if there are no tokens, or none of `ends` is one of them.
    pub fn new<B: AsRef<[u8]>>(tokens: impl IntoIterator<Item = Option<B>>, ends: &[u32]) -> Result<Self, Error> {
        let is_text = |bytes: &&[u8]| {
            // The byte 0xff is in no text; llguidance marks special tokens with it.
            bytes.len() <= MOST_TOKEN_BYTES && bytes.first() != Some(&TokTrie::SPECIAL_TOKEN_MARKER)
        };
        let bytes = |token: Option<B>| match token.as_ref().map(AsRef::as_ref).filter(is_text) {
            Some(bytes) => bytes.to_vec(),
            None => Vec::new(),
        };
        let mut words: Vec<Vec<u8>> = tokens.into_iter().map(bytes).collect();
        let ends: Vec<u32> = ends.iter().copied().filter(|id| (*id as usize) < words.len()).collect();
        let Some(end) = ends.first() else {
            return Err(Error::Vocabulary("it has no token that ends an answer"));
        };
        for id in &ends {
            words[*id as usize].clear();
        }
        let size = words.len();
        let trie = TokTrie::from(&TokRxInfo::new(size as u32, *end), &words).with_eos_tokens(&ends);
        // Tokens are never forced, so that texts need no canonical encoding.
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = SlicedBiasComputer::general_slices();
        let capabilities = InferenceCapabilities::default();
        let mut factory = ParserFactory::new(&environment, capabilities, &slices)
            .map_err(|_| Error::Vocabulary("its tokens have no trie"))?;
        factory.quiet();
        factory.limits_mut().verbose_errors = false;
        Ok(Self { factory: Arc::new(factory), size, ends: ends.into(), leading_space: false })
    }

    /// As SentencePiece models write: an answer may begin with a space, which is not a part of it.
    #[must_use]
    pub fn with_leading_space(mut self) -> Self {
        self.leading_space = true;
        self
    }

    /// Words of a mask: a bit for each token.
    pub fn mask_words(&self) -> usize {
        self.size.div_ceil(32)
    }

    /// Compiles what an answer must look like.
    ///
    /// # Errors
    /// [`Error::Schema`] or [`Error::Format`] if the format is malformed or not supported; [`Error::TooComplex`] if it
    /// exceeds the limits: 1 MiB, 64 levels of nesting, and those of llguidance.
    pub fn compile(&self, format: &Format) -> Result<Grammar, Error> {
        let mut parser = self.parser(format).map_err(|error| match (format, error) {
            (Format::JsonSchema { schema, strict: true }, Error::Schema { pointer, reason }) => {
                let fails = |part: &serde_json::Value| {
                    let part = Format::JsonSchema { schema: part.clone(), strict: true };
                    match self.parser(&part) {
                        Err(Error::Schema { reason, .. }) => Some(reason),
                        _ => None,
                    }
                };
                let (pointer, reason) = schema::failing_part(schema, fails).unwrap_or((pointer, reason));
                Error::Schema { pointer, reason }
            }
            (_, error) => error,
        })?;
        let ignored = parser.grammar_warnings();
        Ok(Grammar { parser, size: self.size, ends: self.ends.clone(), ignored })
    }

    fn parser(&self, format: &Format) -> Result<Parser, Error> {
        let grammar = TopLevelGrammar::from_lark(format.to_lark(self.leading_space)?);
        let mut parser = Parser::new(self.factory.create_parser(grammar));
        if let Some(error) = parser.get_error() {
            let reason = reason(&error);
            let is_limit =
                ["fuel", "too large", "limit", "too many", "too big"].iter().any(|word| reason.contains(word));
            return Err(if is_limit { Error::TooComplex(reason) } else { format.error(reason) });
        }
        // A grammar without any text, such as the schema `false`, is found by the first mask.
        let mask = parser.compute_mask().map_err(|error| format.error(reason(&error)))?;
        if mask.is_zero() {
            return Err(format.error("no text matches it"));
        }
        Ok(parser)
    }
}

/// A compiled format.
pub struct Grammar {
    parser: Parser,
    size: usize,
    ends: Arc<[u32]>,
    ignored: Vec<String>,
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Grammar").field("ignored", &self.ignored).finish_non_exhaustive()
    }
}

impl Grammar {
    /// Matches an answer from its beginning.
    pub fn matcher(&self) -> Matcher {
        Matcher::new(self.parser.deep_clone(), self.size, self.ends.clone())
    }

    /// What was left out of a schema that is not strict, in words.
    pub fn ignored(&self) -> &[String] {
        &self.ignored
    }
}
