//! Readers of checkpoints: tensor names, shapes and element types, from a byte source.
//!
//! From the bottom up: [`dtype`] and [`stored_tensor`] (what a file says of a tensor); the file formats
//! [`safetensors`], [`torch_bin`] (a [`zip`] archive of a [`pickle`]) and [`gguf`] (with [`blocks`]); [`checkpoint`]
//! (one or several files as one set of tensors) and [`view`] (tensors under a prefix); [`config`] (the JSON files next
//! to the weights) and [`expected`] (the tensors that a configuration requires); [`bundle`] (mgm's packed form of a
//! model); whole models: [`mgm`] (Mini-Gemini), [`gguf_model`] (a language model in a GGUF file),
//! [`sdxl`] (Stable Diffusion XL), [`model_files`] (whichever of them a folder holds); [`bundle_layout`] (how a bundle
//! of any of them is written). [`repository`] tells which files of a repository on
//! the Hugging Face Hub make a model.
//!
//! All input is treated as hostile: no file causes a panic, an allocation beyond its own size, or the execution of
//! code.

#[doc(hidden)]
pub mod blocks;
pub mod bundle;
#[doc(hidden)]
pub mod bundle_layout;
pub mod checkpoint;
#[doc(hidden)]
pub mod config;
#[doc(hidden)]
pub mod dtype;
#[doc(hidden)]
pub mod expected;
pub mod gguf;
mod gguf_config;
pub mod gguf_model;
#[doc(hidden)]
pub mod index;
pub mod mgm;
pub mod model_files;
#[doc(hidden)]
pub mod pickle;
#[doc(hidden)]
pub mod report;
#[doc(hidden)]
pub mod repository;
#[doc(hidden)]
pub mod row_order;
pub mod safetensors;
pub mod sdxl;
#[doc(hidden)]
pub mod stored_tensor;
pub mod torch_bin;
pub mod view;
#[doc(hidden)]
pub mod zip;
