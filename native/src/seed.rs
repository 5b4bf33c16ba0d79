//! Random seeds.

use std::hash::{BuildHasher, RandomState};

/// A random seed. The standard library's hasher keys are random, which is all a seed needs.
pub fn random() -> u64 {
    RandomState::new().hash_one(0u8)
}
