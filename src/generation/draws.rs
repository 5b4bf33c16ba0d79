//! Uniform random numbers for sampling.
//!
//! A seed gives the same answer in every release; the small generators of the `rand` crate may change with its
//! versions.

/// SplitMix64 (Steele, Lea and Flood, 2014) as uniform numbers in [0, 1). Numbers are found by their index, so that a
/// token that is chosen again is drawn by the same number.
#[derive(Debug, Clone, Copy)]
pub struct Draws(u64);

impl Draws {
    /// The sequence of one turn of a conversation, and of one of its answers. Each has its own.
    pub fn new(seed: u64, turn: u64, choice: u64) -> Self {
        Self(seed ^ turn.wrapping_mul(0xd1b5_4a32_d192_ed03) ^ choice.wrapping_mul(0xaef1_7502_b3bf_5a6d))
    }

    /// The number for an answer's token number `index`.
    pub fn at(&self, index: usize) -> f32 {
        let mut z = self.0.wrapping_add((index as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        // An f32 holds 24 bits exactly.
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The outputs of the authors' C code for seed 1234567.
    #[test]
    fn numbers_are_those_of_the_published_generator() {
        let published = [
            6_457_827_717_110_365_317u64,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
            4_593_380_528_125_082_431,
        ];
        let draws = Draws::new(1_234_567, 0, 0);
        for (index, output) in published.into_iter().enumerate() {
            assert_eq!(draws.at(index), (output >> 40) as f32 / 16_777_216.0);
        }
    }
}
