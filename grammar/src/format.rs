//! What an answer must look like.

use serde_json::Value;

use crate::Error;
use crate::schema;

/// The longest schema, expression or grammar, in bytes.
const MOST_BYTES: usize = 1 << 20;

/// What an answer must look like.
#[derive(Debug, Clone, PartialEq)]
pub enum Format {
    /// Any JSON object.
    JsonObject,
    /// A JSON value that a schema (draft 2020-12) describes.
    JsonSchema {
        /// The schema.
        schema: Value,
        /// Whether keywords that are not supported are errors. Otherwise they are left out:
        /// [`Grammar::ignored`](crate::Grammar::ignored).
        strict: bool,
    },
    /// A text that a regular expression matches as a whole. It has no look-around and no back-references.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A text that a grammar in llguidance's dialect of Lark describes, from its rule `start`.
    Lark(String),
    /// A text of one of these formats.
    AnyOf(Vec<Format>),
}

/// A schema as a term of a Lark grammar, with the same bounds on white space as [`Format::JsonSchema`].
///
/// # Errors
/// [`Error::TooComplex`] if it exceeds the limits of [`Vocabulary::compile`](crate::Vocabulary::compile).
pub fn lark_term(schema: &Value, strict: bool) -> Result<String, Error> {
    schema::check_size(schema, MOST_BYTES)?;
    Ok(format!("%json {}", schema::with_options(schema, strict)))
}

impl Format {
    /// What the format is called in errors.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::JsonObject | Self::JsonSchema { .. } => "schema",
            Self::Regex(_) => "regular expression",
            Self::Choice(_) => "list of choices",
            Self::Lark(_) | Self::AnyOf(_) => "grammar",
        }
    }

    /// The format as a Lark grammar. `leading_space`: a text may begin with a space that is not part of it.
    pub(crate) fn to_lark(&self, leading_space: bool) -> Result<String, Error> {
        let space = if leading_space { "/ ?/ " } else { "" };
        match self {
            Self::Lark(grammar) if !leading_space => {
                self.check_size(grammar)?;
                Ok(grammar.clone())
            }
            Self::AnyOf(formats) => {
                let mut grammar = String::new();
                for (index, format) in formats.iter().enumerate() {
                    grammar += &format!("start{index}: {}\n", format.term()?);
                }
                let names: Vec<String> = (0..formats.len()).map(|index| format!("start{index}")).collect();
                Ok(format!("start: {space}body\nbody: {}\n{grammar}", names.join(" | ")))
            }
            format => Ok(format!("start: {space}body\nbody: {}\n", format.term()?)),
        }
    }

    /// The format as a term of a Lark grammar.
    fn term(&self) -> Result<String, Error> {
        Ok(match self {
            Self::JsonObject => lark_term(&serde_json::json!({"type": "object"}), true)?,
            Self::JsonSchema { schema, strict } => lark_term(schema, *strict)?,
            Self::Regex(expression) => {
                self.check_size(expression)?;
                format!("/(?s:{})/", escape_slashes(expression))
            }
            Self::Choice(choices) => {
                if choices.is_empty() || choices.iter().any(String::is_empty) {
                    return Err(self.error("it needs one text or more, and none may be empty"));
                }
                let texts: Vec<String> = choices.iter().map(|text| Value::from(text.as_str()).to_string()).collect();
                let texts = texts.join(" | ");
                self.check_size(&texts)?;
                texts
            }
            Self::Lark(grammar) => {
                self.check_size(grammar)?;
                // A grammar within a grammar has names of its own.
                format!("%lark {{\n{grammar}\n}}")
            }
            Self::AnyOf(_) => return Err(self.error("alternatives have no alternatives in them")),
        })
    }

    fn check_size(&self, text: &str) -> Result<(), Error> {
        if text.len() > MOST_BYTES {
            return Err(Error::TooComplex(format!(
                "the {} has {} bytes of at most {MOST_BYTES}",
                self.kind(),
                text.len()
            )));
        }
        Ok(())
    }

    pub(crate) fn error(&self, reason: impl Into<String>) -> Error {
        let reason = reason.into();
        match self {
            Self::JsonObject | Self::JsonSchema { .. } => Error::Schema { pointer: String::new(), reason },
            _ => Error::Format { kind: self.kind(), reason },
        }
    }
}

/// An expression between the slashes of Lark: those of its own are escaped, unless they are already.
fn escape_slashes(expression: &str) -> String {
    let mut escaped = String::with_capacity(expression.len());
    let mut characters = expression.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => {
                escaped.push('\\');
                escaped.extend(characters.next());
            }
            '/' => escaped.push_str("\\/"),
            // A line ends a rule of Lark.
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            other => escaped.push(other),
        }
    }
    escaped
}
