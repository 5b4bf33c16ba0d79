//! How a command fails.

/// An error of the core, or of the output.
#[derive(Debug)]
pub enum CliError {
    Core(mgm::Error),
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
            Self::Core(error) => error.fmt(f),
            Self::Output(error) => write!(f, "writing the output: {error}"),
        }
    }
}
