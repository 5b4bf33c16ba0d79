//! What the core leaves to its host on a native machine: files on disk.

pub mod files;
