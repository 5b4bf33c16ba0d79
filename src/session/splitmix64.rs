//! Uniform random numbers for sampling.
//!
//! A seed gives the same answer in every release; the small generators of the `rand` crate may change with its
//! versions.

/// SplitMix64 (Steele, Lea and Flood, 2014) as uniform numbers in [0, 1).
#[derive(Debug, Clone)]
pub(super) struct SplitMix64(u64);

impl SplitMix64 {
    /// The sequence of one turn of a conversation, and of one of its answers. Each has its own.
    pub(super) fn new(seed: u64, turn: u64, choice: u64) -> Self {
        Self(seed ^ turn.wrapping_mul(0xd1b5_4a32_d192_ed03) ^ choice.wrapping_mul(0xaef1_7502_b3bf_5a6d))
    }

    pub(super) fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        // An f32 holds 24 bits exactly.
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32
    }
}
