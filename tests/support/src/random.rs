//! Reproducible random numbers, defined exactly so that other languages give the same bits.
//!
//! Element `i` of the stream `"{seed}/{name}"`:
//!
//! ```text
//! key = the first 8 bytes of SHA-256 of the stream's name, little-endian
//! z   = output i of SplitMix64 seeded with key
//! x   = (the sum of the four 16-bit parts of z) - 131070     an integer, nearly normal, standard deviation 37837
//! x / 37837                                                  in f64
//! ```
//!
//! Blocks of quantised weights take the bytes of the outputs z, little-endian, and for their scales the uniform numbers
//! `floor(z / 2^11) / 2^53` of the stream `"{seed}/{name}/scales"`.

use sha2::{Digest, Sha256};

/// The standard deviation of the integers, rounded.
const DEVIATION: f64 = 37837.0;

/// Nearly normal numbers with mean 0 and standard deviation 1.
pub fn normal(stream: &str) -> impl Iterator<Item = f64> + use<> {
    outputs(stream).map(|z| {
        let sum: i32 = (0..4).map(|part| (z >> (16 * part) & 0xffff) as i32).sum();
        f64::from(sum - 131_070) / DEVIATION
    })
}

/// Uniform numbers from 0 to below 1, multiples of 2^-53.
pub fn uniform(stream: &str) -> impl Iterator<Item = f64> + use<> {
    outputs(stream).map(|z| (z >> 11) as f64 / (1u64 << 53) as f64)
}

/// Uniform bytes.
pub fn bytes(stream: &str) -> impl Iterator<Item = u8> + use<> {
    outputs(stream).flat_map(u64::to_le_bytes)
}

/// The outputs of SplitMix64 for a stream.
fn outputs(stream: &str) -> impl Iterator<Item = u64> + use<> {
    let digest = Sha256::digest(stream);
    let key = digest[..8].iter().rev().fold(0, |key, byte| key << 8 | u64::from(*byte));
    (0..).map(move |index| splitmix64(key, index))
}

/// Output `index` of SplitMix64 (Steele, Lea, Flood 2014) seeded with `seed`.
fn splitmix64(seed: u64, index: u64) -> u64 {
    let z = seed.wrapping_add((index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitmix64_has_its_published_outputs() {
        let found: Vec<u64> = (0..3).map(|index| splitmix64(1_234_567, index)).collect();
        assert_eq!(found, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn the_numbers_are_nearly_normal() {
        let numbers: Vec<f64> = normal("a stream").take(1 << 16).collect();
        let mean = |power: i32| numbers.iter().map(|x| x.powi(power)).sum::<f64>() / numbers.len() as f64;
        assert!(mean(1).abs() < 0.02, "{}", mean(1));
        assert!((mean(2) - 1.0).abs() < 0.02, "{}", mean(2));
        // The sum of four uniform numbers has a kurtosis of 2.7, a normal number of 3.
        assert!((mean(4) - 2.7).abs() < 0.1, "{}", mean(4));
    }
}
