//! The block formats of GGUF files.
//!
//! The formats are those of ggml (`ggml-common.h` and `dequantize_row_*` of `ggml-quants.c`). Every block is unpacked
//! into groups of 32 integers with two scales ([`Group`]). The f32 values and, losslessly, the device's formats derive
//! from them.
//!
//! No crate unpacks GGUF blocks into these groups: readers such as candle's dequantise to their own tensors.

use half::f16;

use crate::tensor::{GROUP_SIZE, Group, Packed, Precision, saturating_f16};

/// A type of tensor in a GGUF file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum BlockType {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

impl BlockType {
    /// All types.
    pub const ALL: [Self; 8] =
        [Self::Q4_0, Self::Q4_1, Self::Q5_0, Self::Q5_1, Self::Q8_0, Self::Q4K, Self::Q5K, Self::Q6K];

    /// ggml's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// Weights in a block.
    pub fn block_len(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// The format on the device for the same weights.
    pub fn precision(self) -> Precision {
        match self {
            Self::Q4_0 | Self::Q4_1 => Precision::Q4,
            Self::Q5_0 | Self::Q5_1 => Precision::Q5,
            Self::Q8_0 => Precision::Q8,
            Self::Q4K => Precision::Q4K,
            Self::Q5K => Precision::Q5K,
            Self::Q6K => Precision::Q6,
        }
    }

    /// Calls `take` with every group of the blocks in `bytes`, in order. A partial last block is ignored.
    pub fn groups(self, bytes: &[u8], mut take: impl FnMut(&Group)) {
        for block in bytes.chunks_exact(self.block_bytes()) {
            match self {
                Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 => take(&self.small_block(block)),
                Self::Q8_0 => {
                    let mut codes = [0; GROUP_SIZE];
                    codes.copy_from_slice(&block[2..]);
                    take(&Group { codes, scales: [half(block, 0), 0.0] });
                }
                Self::Q4K | Self::Q5K => (0..8).for_each(|group| take(&self.k_block(block, group))),
                Self::Q6K => (0..8).for_each(|group| take(&q6_block(block, group))),
            }
        }
    }

    /// 32 weights with 4 or 5 bits: value j in the low half of byte j, value j + 16 in the high half; the fifth bits in
    /// a word.
    fn small_block(self, block: &[u8]) -> Group {
        let five = matches!(self, Self::Q5_0 | Self::Q5_1);
        let has_minimum = matches!(self, Self::Q4_1 | Self::Q5_1);
        let scale = half(block, 0);
        let head = if has_minimum { 4 } else { 2 };
        let (high, quants) = if five {
            (u32::from_le_bytes([block[head], block[head + 1], block[head + 2], block[head + 3]]), &block[head + 4..])
        } else {
            (0, &block[head..])
        };
        let codes = std::array::from_fn(|j| {
            let low = if j < GROUP_SIZE / 2 { quants[j] & 15 } else { quants[j - GROUP_SIZE / 2] >> 4 };
            low | ((high >> j & 1) as u8) << 4
        });
        // Without a minimum the integers are signed, with zero in the middle.
        let minimum = if has_minimum { half(block, 2) } else { scale * if five { -16.0 } else { -8.0 } };
        Group { codes, scales: [scale, minimum] }
    }

    /// 32 of 256 weights with 4 or 5 bits, with scales and minimums of 6 bits under a common f16 each.
    fn k_block(self, block: &[u8], group: usize) -> Group {
        let (scale, minimum) = (half(block, 0), half(block, 2));
        let packed = &block[4..16];
        let (s, m) = if group < 4 {
            (packed[group] & 63, packed[group + 4] & 63)
        } else {
            (packed[group + 4] & 15 | packed[group - 4] >> 6 << 4, packed[group + 4] >> 4 | packed[group] >> 6 << 4)
        };
        let (high, quants) =
            if self == Self::Q5K { (Some(&block[16..48]), &block[48..]) } else { (None, &block[16..]) };
        let quants = &quants[group / 2 * GROUP_SIZE..][..GROUP_SIZE];
        let codes = std::array::from_fn(|j| {
            let low = quants[j] >> (4 * (group % 2)) & 15;
            low | high.map_or(0, |high| (high[j] >> group & 1) << 4)
        });
        // Exact in f32: 11 bits times 6.
        Group { codes, scales: [scale * f32::from(s), -(minimum * f32::from(m))] }
    }

    /// Quantises `values`, whole groups of 32, to blocks of `Q8_0` or `Q4_1` as ggml does; empty for other types.
    pub fn quantize(self, values: &[f32]) -> Vec<u8> {
        let mut blocks = Vec::with_capacity(values.len() / GROUP_SIZE * self.block_bytes());
        for values in values.chunks_exact(GROUP_SIZE) {
            let Group { codes, scales } = Group::quantize(self.precision(), values);
            let scales = scales.map(|scale| saturating_f16(scale).to_le_bytes());
            match self {
                Self::Q8_0 => {
                    blocks.extend(scales[0]);
                    blocks.extend(codes);
                }
                Self::Q4_1 => {
                    blocks.extend(scales.concat());
                    let (low, high) = codes.split_at(GROUP_SIZE / 2);
                    blocks.extend(low.iter().zip(high).map(|(low, high)| low | high << 4));
                }
                _ => return Vec::new(),
            }
        }
        blocks
    }

    /// Appends the weights of the blocks in `bytes` to `values`.
    pub fn dequantize(self, bytes: &[u8], values: &mut Vec<f32>) {
        let precision = self.precision();
        self.groups(bytes, |group| values.extend_from_slice(&group.values(precision)));
    }

    /// Repacks the rows in `bytes` losslessly to the device's format.
    ///
    /// # Errors
    /// The index of the first group whose scale is not finite or too large for that format, and the scale.
    pub fn repack(self, bytes: &[u8]) -> Result<Packed, (usize, f32)> {
        let precision = self.precision();
        let mut packed = Packed::default();
        let (mut bad, mut count) = (None, 0);
        self.groups(bytes, |group| {
            if bad.is_none() && !group.fits(precision) {
                let scale = group.scales.into_iter().find(|scale| !scale.is_finite()).unwrap_or(group.scales[1]);
                bad = Some((count, scale));
            }
            packed.push(precision, group);
            count += 1;
        });
        bad.map_or(Ok(packed), Err)
    }
}

fn half(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// 32 of 256 weights with 6 bits: low halves in 128 bytes, two high bits each in 64, i8 scales of 16 weights, an f16.
fn q6_block(block: &[u8], group: usize) -> Group {
    let (half_block, quarter) = (group / 4, group % 4);
    let low = &block[64 * half_block + 32 * (quarter % 2)..][..GROUP_SIZE];
    let high = &block[128 + 32 * half_block..][..GROUP_SIZE];
    let scale = half(block, 208);
    let scales = [0, 1].map(|i| scale * f32::from(block[192 + 2 * group + i] as i8));
    let codes = std::array::from_fn(|j| (low[j] >> (4 * (quarter / 2)) & 15) | (high[j] >> (2 * quarter) & 3) << 4);
    Group { codes, scales }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::pack_rows;

    #[test]
    fn blocks_hold_what_the_device_formats_hold() {
        let values: Vec<f32> = (0..32 * 40).map(|i| ((i * i) as f32 * 0.37).sin() * (1 + i / 32) as f32).collect();
        for kind in [BlockType::Q8_0, BlockType::Q4_1] {
            let blocks = kind.quantize(&values);
            assert_eq!(blocks.len(), 40 * kind.block_bytes());
            assert_eq!(kind.repack(&blocks), Ok(pack_rows(kind.precision(), 32, &values)), "{}", kind.name());
        }
    }
}
