//! What the core leaves to its host on a native machine: files on disk; and the measuring of kernels.

pub mod files;
pub mod roofline;
