//! The kernels by themselves. `cargo test --test kernels shaders::` compiles them for every backend;
//! `cargo test --test kernels ops::` runs each against its reference, which takes minutes on a software adapter.

#[path = "../common/mod.rs"]
mod common;

mod ops;
mod shaders;
mod validation;
