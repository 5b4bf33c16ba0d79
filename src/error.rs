//! The error type. Every message says what was found, what was expected and, if it helps, what to do.

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
    /// A required file is missing.
    #[error("{file} is missing: {hint}")]
    MissingFile {
        /// The missing file.
        file: String,
        /// Why it is needed, or where else it can be.
        hint: String,
    },
    /// A file does not follow its format.
    #[error("{file}: malformed at byte {offset}: {reason}")]
    Malformed {
        /// The file.
        file: String,
        /// Offset in bytes from the start of the file; 0 for the whole file.
        offset: u64,
        /// What was found and what was expected.
        reason: String,
    },
    /// The checkpoint lacks a tensor that the model needs.
    #[error("tensor {name} is missing from {file}{hint}")]
    MissingTensor {
        /// The tensor's full name.
        name: String,
        /// The checkpoint's file or folder.
        file: String,
        /// A hint that starts with a separator, or empty.
        hint: String,
    },
    /// A tensor has another shape than the model needs.
    #[error("tensor {name} has shape {found:?}, expected {expected}")]
    WrongShape {
        /// The tensor's full name.
        name: String,
        /// The shape in the file.
        found: Vec<usize>,
        /// The shape that the configuration or other tensors require.
        expected: String,
    },
    /// A tensor has an unusable element type.
    #[error("tensor {name} has element type {found}, expected {expected}")]
    WrongDtype {
        /// The tensor's full name.
        name: String,
        /// The type in the file.
        found: String,
        /// The usable types.
        expected: String,
    },
    /// A tensor contains a NaN or an infinity.
    #[error(
        "tensor {name} contains {value} at element {index}: the file is damaged or was saved from a diverged model"
    )]
    BadValue {
        /// The tensor's full name.
        name: String,
        /// The value found.
        value: f32,
        /// Its flat index.
        index: u64,
    },
    /// A configuration requests a feature that this program does not support.
    #[error("{what} {found:?} is not supported; supported: {supported}")]
    Unsupported {
        /// The setting, for example `model_type`.
        what: String,
        /// Its value.
        found: String,
        /// The supported values.
        supported: String,
    },
    /// A configuration is inconsistent or incomplete.
    #[error("{file}: {reason}")]
    Config {
        /// The configuration file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The files lack or do not support something that the caller can choose.
    #[error("{file}: {reason}")]
    NeedsSetting {
        /// The setting to choose it with.
        setting: Setting,
        /// The file or folder.
        file: String,
        /// What was found, and what to choose.
        reason: String,
    },
    /// An image cannot be used.
    #[error("image {name}: {reason}")]
    Image {
        /// The image's name.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The prompt does not fit the model's context.
    #[error(
        "the prompt has {tokens} tokens (images included), the context {limit}: shorten it or start a new conversation"
    )]
    PromptTooLong {
        /// Tokens of the prompt, images included.
        tokens: usize,
        /// Positions of the context.
        limit: usize,
    },
    /// An argument of a call is invalid.
    #[error("{0}")]
    InvalidArgument(String),
    /// There is no GPU adapter, or none that matches the request.
    #[error("{0}")]
    NoAdapter(String),
    /// The device has too little memory.
    #[error(
        "not enough GPU memory for {what}: {:.1} MiB needed, {}choose a smaller model or a lower precision",
        mebibytes(*needed),
        match *available {
            0 => "the device has no more; ".to_owned(),
            bytes => format!("{:.1} MiB available; raise the memory limit if you set one, or ", mebibytes(bytes)),
        }
    )]
    OutOfMemory {
        /// The allocation.
        what: String,
        /// Bytes needed in total.
        needed: u64,
        /// Free bytes; 0 if the adapter does not report them.
        available: u64,
    },
    /// The device was lost.
    #[error("the GPU device was lost ({0}); load the model again to continue")]
    DeviceLost(String),
    /// The GPU API reported an error: a bug in this program or in the driver.
    #[error("GPU error: {0}")]
    Gpu(String),
    /// A state that this program should never reach: a bug.
    #[error("internal error: {0} (this is a bug in mgm, please report it)")]
    Internal(String),
    /// The caller cancelled the operation.
    #[error("cancelled")]
    Cancelled,
}

/// MiB for messages, the unit of `mgm inspect`.
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

impl Error {
    /// [`Error::Io`] from an error of the standard library, with its kind.
    pub fn io(file: impl Into<String>, error: &std::io::Error) -> Self {
        Self::Io { file: file.into(), kind: error.kind(), reason: error.to_string() }
    }

    /// A short stable name for programs.
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
            Self::NeedsSetting { .. } => "needs-setting",
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

    /// The setting that resolves the error, if one does. Hosts append its name in their interface to the message, such
    /// as `--precision` on the command line.
    pub fn remedy(&self) -> Option<Setting> {
        match self {
            Self::NeedsSetting { setting, .. } => Some(*setting),
            Self::OutOfMemory { .. } => Some(Setting::Precision),
            _ => None,
        }
    }
}

/// A setting of the caller that resolves an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Setting {
    /// The folder of the low-resolution vision tower: `TowerOptions::clip`.
    VisionTower,
    /// The folder of the high-resolution vision tower: `TowerOptions::convnext`.
    HighResolutionTower,
    /// The folder of an image model's tokenizers and configurations: `OpenOptions::components_dir`.
    Components,
    /// The autoencoder of an image model: `OpenOptions::vae`.
    Vae,
    /// The conversation template: `LoadOptions::template`.
    Template,
    /// The scheduler of an image model: `SchedulerOverride`.
    Scheduler,
    /// The precision of the weights: `LoadOptions::precision`, `DiffusionOptions::precision`.
    Precision,
    /// The image model, given as the chat model: `DiffusionPipeline` opens it.
    ImageModel,
}

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_resolve_the_errors_that_name_them() {
        let error = Error::NeedsSetting {
            setting: Setting::Template,
            file: "model.gguf".to_owned(),
            reason: "it has no template".to_owned(),
        };
        assert_eq!(error.to_string(), "model.gguf: it has no template");
        assert_eq!((error.code(), error.remedy()), ("needs-setting", Some(Setting::Template)));
        let error = Error::OutOfMemory { what: "the UNet".to_owned(), needed: 2, available: 1 };
        assert_eq!(error.remedy(), Some(Setting::Precision));
        assert_eq!(Error::Cancelled.remedy(), None);
    }
}
