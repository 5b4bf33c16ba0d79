//! What a checkpoint is: names, shapes, element types, and readers over a byte source.
//!
//! Readers, from the bottom up: [`source`] (bytes), [`dtype`] (elements), the file formats [`safetensors`],
//! [`torch_bin`] (with [`zip`] and [`pickle`] under it), [`gguf`] (with [`blocks`]), [`checkpoint`] (one or many files as one set of tensors),
//! [`view`] (tensors under a prefix), [`config`] (the JSON beside them) and [`mgm`] (a whole Mini-Gemini checkpoint),
//! [`gguf_model`] (a language model in a GGUF file).
//!
//! Everything here treats its input as hostile: no file may cause a panic, an allocation beyond its own size or the
//! execution of anything.

pub mod blocks;
pub mod bundle;
pub mod checkpoint;
pub mod config;
pub mod dtype;
pub mod gguf;
pub mod gguf_model;
pub mod mgm;
pub mod model_files;
pub mod pickle;
pub mod safetensors;
pub mod sdxl;
pub mod source;
pub mod torch_bin;
pub mod view;
pub mod zip;
