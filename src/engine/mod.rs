//! Many sequences at once.

pub mod blocks;
pub mod digest;
