//! What answers must look like.

use std::path::{Path, PathBuf};

use clap::Args;
use mgm::session::ModelText;
use mgm_grammar::Format;

use crate::CliError;
use crate::constraint::{AnswerConstraint, Constraints};

#[derive(Debug, Args)]
#[group(multiple = false)]
pub struct FormArgs {
    /// Answer with JSON that this schema (draft 2020-12) describes: a file, or the schema itself
    #[arg(long, value_name = "FILE|JSON")]
    json_schema: Option<String>,
    /// Answer with a text that this regular expression matches as a whole, without look-around and back-references
    #[arg(long, value_name = "REGEX")]
    regex: Option<String>,
    /// Answer with one of these texts; repeat for several
    #[arg(long, value_name = "TEXT")]
    choice: Vec<String>,
    /// Answer with a text of the grammar in this file, in llguidance's dialect of Lark
    #[arg(long, value_name = "FILE")]
    grammar: Option<PathBuf>,
}

impl FormArgs {
    /// What the options ask for, and the option.
    ///
    /// # Errors
    /// Those of reading files; a schema that is not JSON.
    pub fn format(&self) -> Result<Option<(&'static str, Format)>, CliError> {
        if let Some(named) = &self.json_schema {
            let is_json = named.trim_start().starts_with('{') || ["true", "false"].contains(&named.trim());
            let (text, what) = match is_json {
                true => (named.clone(), "the schema".to_owned()),
                false => (read(Path::new(named))?, named.clone()),
            };
            let schema = serde_json::from_str(&text)
                .map_err(|error| invalid("--json-schema", format!("{what} is not JSON: {error}")))?;
            return Ok(Some(("--json-schema", Format::JsonSchema { schema, strict: true })));
        }
        if let Some(regex) = &self.regex {
            return Ok(Some(("--regex", Format::Regex(regex.clone()))));
        }
        if let Some(file) = &self.grammar {
            return Ok(Some(("--grammar", Format::Lark(read(file)?))));
        }
        Ok((!self.choice.is_empty()).then(|| ("--choice", Format::Choice(self.choice.clone()))))
    }
}

/// Compiles what the option asks for, for a model of `vocab` tokens.
///
/// # Errors
/// What is malformed or not supported, with the option.
pub fn constraint(
    (option, format): (&'static str, Format),
    text: &ModelText,
    vocab: usize,
) -> Result<AnswerConstraint, CliError> {
    let compile = || Ok(Constraints::new(text, vocab)?.matcher(format, false)?.0);
    let matcher = compile().map_err(|error: mgm_grammar::Error| invalid(option, error.to_string()))?;
    Ok(AnswerConstraint::Grammar(Box::new(matcher)))
}

fn read(file: &Path) -> Result<String, CliError> {
    let text = std::fs::read_to_string(file).map_err(|error| mgm::Error::Io {
        file: file.display().to_string(),
        kind: error.kind(),
        reason: error.to_string(),
    })?;
    Ok(text)
}

fn invalid(option: &str, reason: String) -> CliError {
    mgm::Error::InvalidArgument(format!("{option}: {reason}")).into()
}
