//! The one error type. Every message says what was found, what was expected and, where it helps, what to do.

/// What can go wrong.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Reading or writing a file failed.
    #[error("{file}: {reason}")]
    Io {
        /// The file's path or address.
        file: String,
        /// The kind of failure; [`std::io::ErrorKind::Other`] where the host does not know it.
        kind: std::io::ErrorKind,
        /// The host's description of the failure.
        reason: String,
    },
    /// A file that must be there is not.
    #[error("{file} is missing: {hint}")]
    MissingFile {
        /// The file that was looked for.
        file: String,
        /// Why it is needed, or where else it may be put.
        hint: String,
    },
    /// A file does not have the form it claims to have.
    #[error("{file}: malformed at byte {offset}: {reason}")]
    Malformed {
        /// The file.
        file: String,
        /// Where in the file, in bytes from its start (0 where the whole file is meant).
        offset: u64,
        /// What was found and what was expected.
        reason: String,
    },
    /// A tensor that the model needs is not in the checkpoint.
    #[error("tensor {name} is missing from {file}{hint}")]
    MissingTensor {
        /// The tensor's full name.
        name: String,
        /// The checkpoint's file or folder.
        file: String,
        /// What else could be done, starting with a separator, or empty.
        hint: String,
    },
    /// A tensor has a shape other than the model's.
    #[error("tensor {name} has shape {found:?}, expected {expected}")]
    WrongShape {
        /// The tensor's full name.
        name: String,
        /// The shape in the file.
        found: Vec<usize>,
        /// The shape that the configuration or the other tensors call for.
        expected: String,
    },
    /// A tensor has an element type that cannot be used.
    #[error("tensor {name} has element type {found}, expected {expected}")]
    WrongDtype {
        /// The tensor's full name.
        name: String,
        /// The type in the file.
        found: String,
        /// The types that can be read.
        expected: String,
    },
    /// A tensor holds a NaN or an infinity.
    #[error("tensor {name} holds {value} at element {index}: the file is damaged or was saved from a diverged model")]
    BadValue {
        /// The tensor's full name.
        name: String,
        /// The value found.
        value: f32,
        /// Flat index of the value.
        index: u64,
    },
    /// A configuration names something this program does not know.
    #[error("{what} {found:?} is not supported; supported: {supported}")]
    Unsupported {
        /// The thing, for example `model_type`.
        what: String,
        /// What was found.
        found: String,
        /// What would be understood.
        supported: String,
    },
    /// A configuration contradicts itself or lacks a value.
    #[error("{file}: {reason}")]
    Config {
        /// The configuration file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A picture cannot be used.
    #[error("image {name}: {reason}")]
    Image {
        /// The picture's name.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The prompt does not fit the model's context.
    #[error(
        "the prompt takes {tokens} tokens (images included), the context holds {limit}: shorten it or start a new conversation"
    )]
    PromptTooLong {
        /// Positions the prompt needs.
        tokens: usize,
        /// Positions there are.
        limit: usize,
    },
    /// A call's arguments make no sense.
    #[error("{0}")]
    InvalidArgument(String),
    /// No adapter, or none that was asked for.
    #[error("{0}")]
    NoAdapter(String),
    /// The device has too little memory.
    #[error(
        "not enough GPU memory for {what}: {needed} bytes needed, {}; try a lower --precision or a smaller model",
        if *available == 0 { "the device has no more".to_owned() } else { format!("{available} available") }
    )]
    OutOfMemory {
        /// What was to be allocated.
        what: String,
        /// Bytes needed in all.
        needed: u64,
        /// Bytes that are free (0 if the adapter does not say).
        available: u64,
    },
    /// The device went away.
    #[error("the GPU device was lost ({0}); load the model again to go on")]
    DeviceLost(String),
    /// The GPU API reported an error, which is a bug in this program or in the driver.
    #[error("GPU error: {0}")]
    Gpu(String),
    /// A state that this program should never reach: a bug.
    #[error("internal error: {0} (this is a bug in mgm, please report it)")]
    Internal(String),
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// [`Error::Io`] from an error of the standard library, with its kind.
    pub fn io(file: impl Into<String>, error: &std::io::Error) -> Self {
        Self::Io { file: file.into(), kind: error.kind(), reason: error.to_string() }
    }

    /// A short name for programs, which stays the same between versions.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io { .. } => "io",
            Self::MissingFile { .. } => "missing-file",
            Self::Malformed { .. } => "malformed",
            Self::MissingTensor { .. } => "missing-tensor",
            Self::WrongShape { .. } => "wrong-shape",
            Self::WrongDtype { .. } => "wrong-dtype",
            Self::BadValue { .. } => "bad-value",
            Self::Unsupported { .. } => "unsupported",
            Self::Config { .. } => "config",
            Self::Image { .. } => "image",
            Self::PromptTooLong { .. } => "prompt-too-long",
            Self::InvalidArgument(_) => "invalid-argument",
            Self::NoAdapter(_) => "no-adapter",
            Self::OutOfMemory { .. } => "out-of-memory",
            Self::DeviceLost(_) => "device-lost",
            Self::Gpu(_) => "gpu",
            Self::Internal(_) => "internal",
            Self::Cancelled => "cancelled",
        }
    }
}

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
