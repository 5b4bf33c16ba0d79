//! What mgm reads, without a model's arithmetic: checkpoints, tokenizers, images, quantised blocks; and, read from the
//! source, the order of the modules' layers and the npm package's defaults. One program, because each takes as long to
//! link as its tests to compile: `cargo test --test readers text::` runs one file's tests.

#[path = "../common/mod.rs"]
mod common;

mod defaults;
mod faults;
mod folders;
mod gguf;
mod image;
mod json;
mod layers;
mod quantise;
mod text;
mod weights;
