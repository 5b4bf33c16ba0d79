//! How a command fails.

/// An error of the core, or of standard input or output.
#[derive(Debug)]
pub enum CliError {
    Core(mgm::Error),
    Input(std::io::Error),
    Output(std::io::Error),
}

impl From<mgm::Error> for CliError {
    fn from(error: mgm::Error) -> Self {
        Self::Core(error)
    }
}

impl From<std::io::Error> for CliError {
    fn from(error: std::io::Error) -> Self {
        Self::Output(error)
    }
}

impl std::fmt::Display for CliError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Core(error) => {
                error.fmt(f)?;
                match option_for(error) {
                    Some(option) => write!(f, " ({option})"),
                    None => Ok(()),
                }
            }
            Self::Input(error) => write!(f, "reading the input: {error}"),
            Self::Output(error) => write!(f, "writing the output: {error}"),
        }
    }
}

/// The option that removes the cause of an error. The core's messages name none: its other users have no command line.
fn option_for(error: &mgm::Error) -> Option<&'static str> {
    match error {
        mgm::Error::OutOfMemory { .. } => Some("--precision P"),
        mgm::Error::MissingFile { hint, .. } if hint.contains("the low-resolution tower") => Some("--vision-tower DIR"),
        mgm::Error::MissingFile { hint, .. } if hint.contains("the high-resolution tower") => {
            Some("--vision-tower-hr DIR")
        }
        mgm::Error::MissingFile { hint, .. } if hint.contains("contains no vocabulary") => Some("--tokenizer DIR"),
        mgm::Error::WrongShape { expected, .. } if expected.contains("folder of configurations") => {
            Some("--tokenizer DIR")
        }
        mgm::Error::Config { reason, .. } if reason.contains("choose a conversation template") => {
            Some("--conversation NAME")
        }
        mgm::Error::Unsupported { supported, .. } if supported.contains("this file's noise schedule") => {
            Some("--scheduler NAME")
        }
        _ => None,
    }
}
