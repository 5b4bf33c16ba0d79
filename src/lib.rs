//! The core of `mgm`: Mini-Gemini vision-language models on any GPU, through WebGPU.
//!
//! The core uses no network, no threads and no standard output, and files only with the feature `fs`. A host (the native
//! binary, a browser page) passes an [`io::Folder`] to read from and drives the futures.
//!
//! Features: `fs` (default) reads from disk; `decode` (default) decodes image files; `gpu` (default) runs models. With
//! `default-features = false` the readers remain: parse checkpoints, tokenizers and configurations without wgpu.

pub mod diffusion;
pub mod error;
#[cfg(feature = "gpu")]
pub mod gpu;
pub mod image;
pub mod io;
#[cfg(feature = "gpu")]
pub mod language;
#[cfg(feature = "gpu")]
pub mod loader;
#[cfg(feature = "gpu")]
pub mod memory_plan;
#[cfg(feature = "gpu")]
mod nn;
#[cfg(feature = "gpu")]
pub mod ops;
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
