//! Reads lines of user input.

use std::path::PathBuf;

use rustyline::error::ReadlineError;

use crate::CliError;

/// Lines from a terminal, with editing and history, or from a pipe.
pub enum Lines {
    Terminal(Box<rustyline::DefaultEditor>, Option<PathBuf>),
    Pipe(std::io::Lines<std::io::StdinLock<'static>>),
}

impl Lines {
    pub fn open(terminal: bool) -> Result<Self, CliError> {
        if !terminal {
            return Ok(Self::Pipe(std::io::stdin().lines()));
        }
        let mut editor = rustyline::DefaultEditor::new().map_err(std::io::Error::other)?;
        let history = history_file();
        if let Some(file) = &history {
            // Fails on the first run, when there is no history file.
            let _ = editor.load_history(file);
        }
        Ok(Self::Terminal(Box::new(editor), history))
    }

    pub fn next(&mut self) -> Result<Option<String>, CliError> {
        match self {
            Self::Pipe(lines) => lines.next().transpose().map_err(CliError::Input),
            Self::Terminal(editor, history) => loop {
                match editor.readline("> ") {
                    Ok(line) => {
                        // Ignore failures: the conversation works without history.
                        let _ = editor.add_history_entry(&line);
                        if let Some(file) = history {
                            let _ = editor.save_history(file);
                        }
                        return Ok(Some(line));
                    }
                    Err(ReadlineError::Interrupted) => continue,
                    Err(ReadlineError::Eof) => return Ok(None),
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
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").or_else(|| std::env::var_os("USERPROFILE")).map(PathBuf::from);
    let folder = state.or_else(|| home().map(|home| home.join(".local").join("state")))?.join("mgm");
    std::fs::create_dir_all(&folder).ok()?;
    Some(folder.join("history"))
}
