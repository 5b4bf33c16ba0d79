//! The browser front of mgm. For now it only proves that the core compiles to WebAssembly.

pub use mgm::Error;
