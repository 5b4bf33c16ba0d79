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
}

impl Format {
    /// What the format is called in errors.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::JsonObject | Self::JsonSchema { .. } => "schema",
            Self::Regex(_) => "regular expression",
            Self::Choice(_) => "list of choices",
            Self::Lark(_) => "grammar",
        }
    }

    /// The format as a Lark grammar. `leading_space`: a text may begin with a space that is not part of it.
    pub(crate) fn to_lark(&self, leading_space: bool) -> Result<String, Error> {
        let body = match self {
            Self::JsonObject => format!("%json {}", schema::with_options(&serde_json::json!({"type": "object"}), true)),
            Self::JsonSchema { schema, strict } => {
                schema::check_size(schema, MOST_BYTES)?;
                format!("%json {}", schema::with_options(schema, *strict))
            }
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
                if !leading_space {
                    return Ok(grammar.clone());
                }
                // A grammar within a grammar has names of its own.
                format!("%lark {{\n{grammar}\n}}")
            }
        };
        let space = if leading_space { "/ ?/ " } else { "" };
        Ok(format!("start: {space}body\nbody: {body}\n"))
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
