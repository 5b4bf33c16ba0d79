//! Writes to standard output.

use std::io::Write;

use serde::Serialize;

use crate::CliError;

/// Prints a value as one line of JSON.
pub fn print_json(value: &impl Serialize) -> Result<(), CliError> {
    let text = serde_json::to_string(value).map_err(std::io::Error::other)?;
    Ok(writeln!(std::io::stdout(), "{text}")?)
}
