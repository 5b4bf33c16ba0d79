//! The core of `mgm`: Mini-Gemini vision-language models on any GPU, through WebGPU.
//!
//! The core has no files, no network, no threads and no standard output of its own. A host (the native binary, a
//! browser page) gives it a [`weights::source::Folder`] to read from and drives its futures.

pub mod error;
pub mod gpu;
pub mod image;
pub mod language;
pub mod load;
pub mod ops;
pub mod plan;
pub mod session;
pub mod tensor;
pub mod text;
pub mod variants;
pub mod vision;
pub mod weights;

pub use error::{Error, Result};
