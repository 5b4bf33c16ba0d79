//! The core of `mgm`: Mini-Gemini vision-language models on any GPU, through WebGPU.
//!
//! The core has no files, no network, no threads and no standard output of its own. A host (the native binary, a
//! browser page) gives it a [`weights::source::Folder`] to read from and drives its futures.

#[cfg(feature = "gpu")]
mod clip_layer;
pub mod diffusion;
pub mod error;
#[cfg(feature = "gpu")]
pub mod gpu;
pub mod image;
#[cfg(feature = "gpu")]
pub mod language;
#[cfg(feature = "gpu")]
pub mod load;
#[cfg(feature = "gpu")]
pub mod ops;
#[cfg(feature = "gpu")]
pub mod plan;
#[cfg(feature = "gpu")]
pub mod roofline;
#[cfg(feature = "gpu")]
pub mod session;
pub mod tensor;
pub mod text;
#[cfg(feature = "gpu")]
pub mod tuning;
#[cfg(feature = "gpu")]
pub mod variants;
#[cfg(feature = "gpu")]
pub mod vision;
pub mod weights;

pub use error::{Error, Result};
