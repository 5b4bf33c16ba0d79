//! Whole models through the library: conversations, image generation, a real model against llama.cpp.
//! `cargo test --test models session::` runs one file's tests.

#[path = "../common/mod.rs"]
mod common;

mod diffusion;
#[cfg(feature = "engine")]
mod engine;
#[cfg(feature = "engine")]
mod engine_images;
mod session;
mod smollm2;
