//! Reads lines of user input.

use std::io::{BufRead, ErrorKind};
use std::path::PathBuf;

use rustyline::error::ReadlineError;

use super::history::{History, MAX_LINES};
use crate::files::home;
use crate::{CliError, interrupt};

/// Lines from a terminal, with editing and history, or from a pipe.
pub enum Lines {
    Terminal(Box<rustyline::DefaultEditor>, Option<History>),
    Pipe(std::io::StdinLock<'static>),
}

/// What was read.
pub enum Line {
    Text(String),
    /// Bytes that are not UTF-8.
    NotText,
}

impl Lines {
    pub fn open(terminal: bool) -> Result<Self, CliError> {
        if !terminal {
            return Ok(Self::Pipe(std::io::stdin().lock()));
        }
        Self::with_history(history_file())
    }

    fn with_history(file: Option<PathBuf>) -> Result<Self, CliError> {
        let config = rustyline::Config::builder().max_history_size(MAX_LINES).map_err(std::io::Error::other)?.build();
        let mut editor = rustyline::DefaultEditor::with_config(config).map_err(std::io::Error::other)?;
        // Ignore failures: the conversation works without history.
        let (history, lines) = file.and_then(|file| History::open(file).ok()).unzip();
        for line in lines.unwrap_or_default() {
            let _ = editor.add_history_entry(line);
        }
        Ok(Self::Terminal(Box::new(editor), history))
    }

    pub fn next(&mut self) -> Result<Option<Line>, CliError> {
        match self {
            Self::Pipe(input) => {
                let mut line = Vec::new();
                // Nothing else runs that Ctrl-C could stop.
                let read = interrupt::exit_while(|| input.read_until(b'\n', &mut line));
                if read.map_err(CliError::Input)? == 0 {
                    return Ok(None);
                }
                Ok(Some(String::from_utf8(line).map_or(Line::NotText, Line::Text)))
            }
            Self::Terminal(editor, history) => loop {
                match editor.readline("> ") {
                    Ok(line) => {
                        // Repeated and empty lines are no new entries. Ignore failures, as above.
                        if editor.add_history_entry(&line).is_ok_and(|added| added)
                            && let Some(history) = history
                        {
                            let _ = history.append(&line);
                        }
                        return Ok(Some(Line::Text(line)));
                    }
                    Err(ReadlineError::Interrupted) => continue,
                    Err(ReadlineError::Eof) => return Ok(None),
                    Err(ReadlineError::Io(error)) if error.kind() == ErrorKind::InvalidData => {
                        return Ok(Some(Line::NotText));
                    }
                    Err(error) => return Err(CliError::Input(std::io::Error::other(error))),
                }
            },
        }
    }
}

/// Returns `$XDG_STATE_HOME/mgm/history`, or `~/.local/state/mgm/history`, and creates its folder. `None` if there is
/// no home folder, or if the folder cannot be created. No crate for this: `dirs::state_dir` is `None` on Windows and
/// macOS.
fn history_file() -> Option<PathBuf> {
    let folder = state_folder(|name| std::env::var_os(name))?.join("mgm");
    std::fs::create_dir_all(&folder).ok()?;
    Some(folder.join("history"))
}

/// An empty variable counts as unset, as the XDG specification says, and so does a relative path.
fn state_folder(variable: impl Fn(&str) -> Option<std::ffi::OsString>) -> Option<PathBuf> {
    let folder = |name| variable(name).map(PathBuf::from).filter(|folder| folder.is_absolute());
    let home = || home(&variable).filter(|home| home.is_absolute());
    folder("XDG_STATE_HOME").or_else(|| Some(home()?.join(".local").join("state")))
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn the_history_is_in_an_absolute_folder() {
        let find = |variables: &[(&str, &str)]| {
            let value = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.into());
            state_folder(value).map(|folder| folder.display().to_string())
        };
        assert_eq!(find(&[("XDG_STATE_HOME", "/s"), ("HOME", "/h")]).as_deref(), Some("/s"));
        for state in ["", "s"] {
            assert_eq!(find(&[("XDG_STATE_HOME", state), ("HOME", "/h")]).as_deref(), Some("/h/.local/state"));
            assert_eq!(find(&[("XDG_STATE_HOME", state), ("HOME", "")]), None);
        }
    }
}
