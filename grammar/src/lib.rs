//! Constrained output: JSON schemas, regular expressions, lists of choices and Lark grammars as masks of tokens.
//!
//! [llguidance](https://github.com/guidance-ai/llguidance) compiles and matches the grammars. This crate gives it a
//! vocabulary, bounds what a grammar may cost, and says which part of a schema is not supported.
//!
//! ```
//! use mgm_grammar::{Format, Vocabulary};
//!
//! // Token 3 ends an answer.
//! let bytes = [Some(&b"yes"[..]), Some(b"no"), Some(b"maybe"), None];
//! let vocabulary = Vocabulary::new(bytes, &[3])?;
//! let format = Format::Choice(vec!["yes".to_owned(), "no".to_owned()]);
//! let mut matcher = vocabulary.compile(&format)?.matcher();
//!
//! let mut mask = vec![0; vocabulary.mask_words()];
//! matcher.fill_mask(&mut mask)?;
//! assert_eq!(mask, [0b0011]);
//! matcher.accept(1)?;
//! matcher.fill_mask(&mut mask)?;
//! assert_eq!(mask, [0b1000]);
//! # Ok::<(), mgm_grammar::Error>(())
//! ```

mod format;
mod matcher;
mod schema;
mod vocabulary;

pub use format::{Format, lark_term};
pub use matcher::Matcher;
pub use vocabulary::{Grammar, Vocabulary};

/// Why an answer cannot be constrained.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A part of a JSON schema is malformed or not supported.
    #[error("Invalid schema{}: {reason}", at(pointer))]
    Schema {
        /// JSON pointer to the smallest part that fails by itself, empty for the schema as a whole.
        pointer: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A regular expression, a list of choices or a grammar is malformed or not supported.
    #[error("Invalid {kind}: {reason}")]
    Format {
        /// Such as "regular expression".
        kind: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The grammar, or a mask of it, takes more work or memory than a request may.
    #[error("the grammar is too complex: {0}")]
    TooComplex(String),
    /// A token was accepted that the grammar does not allow.
    #[error("token {0} is not allowed by the grammar")]
    NotAllowed(u32),
    /// The vocabulary cannot be used: it is empty, or no token ends an answer.
    #[error("the vocabulary cannot be used for constrained output: {0}")]
    Vocabulary(&'static str),
}

fn at(pointer: &str) -> String {
    if pointer.is_empty() { String::new() } else { format!(" at {pointer}") }
}
