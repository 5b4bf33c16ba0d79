//! The block formats of GGUF files.
//!
//! The formats are those of ggml (`ggml-common.h` and `dequantize_row_*` of `ggml-quants.c`). Every block is unpacked
//! into groups of 32 integers with two scales ([`Group`]). The f32 values and, losslessly, the device's formats derive
//! from them. Loops over groups are compiled once for each type: only then they need no branches and vectorise.
//!
//! No crate unpacks GGUF blocks into these groups: readers such as candle's dequantise to their own tensors.

use std::sync::atomic::{AtomicUsize, Ordering};

use half::f16;

use crate::parallel;
use crate::tensor::{
    GROUP_SIZE, Group, Packed, Precision, SUPERBLOCK_GROUPS, SuperScales, Tile, f16_value, saturating_f16,
};

/// Blocks that a thread works on at a time, and the most that are checked.
const CHUNK_BLOCKS: usize = 1 << 12;

/// Evaluates `$body` with the type `$kind` as the constant `$constant`.
macro_rules! specialised {
    ($kind:expr, $constant:ident => $body:expr) => {
        specialised!($kind, $constant => $body, Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q4K Q5K Q6K)
    };
    ($kind:expr, $constant:ident => $body:expr, $($variant:ident)*) => {
        match $kind {
            $(BlockType::$variant => {
                const $constant: BlockType = BlockType::$variant;
                $body
            })*
        }
    };
}

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
            Self::Q4_0 => Precision::Q4_0,
            Self::Q4_1 => Precision::Q4,
            Self::Q5_0 => Precision::Q5_0,
            Self::Q5_1 => Precision::Q5,
            Self::Q8_0 => Precision::Q8,
            Self::Q4K => Precision::Q4K,
            Self::Q5K => Precision::Q5K,
            Self::Q6K => Precision::Q6,
        }
    }

    /// Bytes of a row of `columns` weights.
    pub fn row_bytes(self, columns: usize) -> usize {
        columns / self.block_len() * self.block_bytes()
    }

    /// The group at `index` of the blocks in `bytes`.
    #[inline(always)]
    fn group(self, bytes: &[u8], index: usize) -> Group {
        let groups = self.block_len() / GROUP_SIZE;
        let block = &bytes[index / groups * self.block_bytes()..][..self.block_bytes()];
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 => self.small_block(block),
            Self::Q8_0 => {
                let mut codes = [0; GROUP_SIZE];
                codes.copy_from_slice(&block[2..]);
                Group { codes, scales: [half(block, 0), 0.0] }
            }
            Self::Q4K | Self::Q5K => self.k_block(block, index % groups),
            Self::Q6K => q6_block(block, index % groups),
        }
    }

    /// The scales of a block of 256 weights.
    #[inline(always)]
    fn super_scales(self, block: &[u8]) -> SuperScales {
        let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]);
        let mut groups = [[0; 2]; SUPERBLOCK_GROUPS];
        if self == Self::Q6K {
            groups.as_flattened_mut().copy_from_slice(&block[192..208]);
            return SuperScales { units: [half(208), f16::ZERO], groups };
        }
        let packed = &block[4..16];
        for group in 0..SUPERBLOCK_GROUPS / 2 {
            let (scale, minimum, low) = (packed[group], packed[group + 4], packed[group + 8]);
            groups[group] = [scale & 63, minimum & 63];
            groups[group + 4] = [low & 15 | scale >> 6 << 4, low >> 4 | minimum >> 6 << 4];
        }
        SuperScales { units: [half(0), half(2)], groups }
    }

    /// 32 weights with 4 or 5 bits: value j in the low half of byte j, value j + 16 in the high half; the fifth bits in
    /// a word.
    #[inline(always)]
    fn small_block(self, block: &[u8]) -> Group {
        let five = matches!(self, Self::Q5_0 | Self::Q5_1);
        let has_minimum = matches!(self, Self::Q4_1 | Self::Q5_1);
        let scale = half(block, 0);
        let (high, quants) = block[if has_minimum { 4 } else { 2 }..].split_at(if five { 4 } else { 0 });
        let mut codes = [0; GROUP_SIZE];
        let (first, second) = codes.split_at_mut(GROUP_SIZE / 2);
        for ((first, second), byte) in first.iter_mut().zip(second).zip(quants) {
            (*first, *second) = (byte & 15, byte >> 4);
        }
        if let Some(high) = high.first_chunk() {
            add_fifth_bits(&mut codes, *high);
        }
        // Without a minimum the integers are signed, with zero in the middle.
        let minimum = if has_minimum { half(block, 2) } else { scale * if five { -16.0 } else { -8.0 } };
        Group { codes, scales: [scale, minimum] }
    }

    /// 32 of 256 weights with 4 or 5 bits, with scales and minimums of 6 bits under a common f16 each.
    #[inline(always)]
    fn k_block(self, block: &[u8], group: usize) -> Group {
        let (high, quants) =
            if self == Self::Q5K { (Some(&block[16..48]), &block[48..]) } else { (None, &block[16..]) };
        let quants = &quants[group / 2 * GROUP_SIZE..][..GROUP_SIZE];
        let mut codes = [0; GROUP_SIZE];
        for (code, byte) in codes.iter_mut().zip(quants) {
            *code = byte >> (4 * (group % 2)) & 15;
        }
        if let Some(high) = high {
            for (code, byte) in codes.iter_mut().zip(high) {
                *code |= (byte >> group & 1) << 4;
            }
        }
        Group { codes, scales: self.super_scales(block).of_group(self.precision(), group) }
    }

    /// Quantises `values`, whole groups of 32, to blocks of `Q8_0` or `Q4_1` as ggml does; empty for other types.
    pub fn quantize(self, values: &[f32]) -> Vec<u8> {
        if !matches!(self, Self::Q8_0 | Self::Q4_1) {
            return Vec::new();
        }
        let mut blocks = vec![0; values.len() / GROUP_SIZE * self.block_bytes()];
        let parts = blocks.chunks_mut(CHUNK_BLOCKS * self.block_bytes()).zip(values.chunks(CHUNK_BLOCKS * GROUP_SIZE));
        parallel::for_each(parts, |(blocks, values)| {
            for (block, values) in blocks.chunks_exact_mut(self.block_bytes()).zip(values.chunks_exact(GROUP_SIZE)) {
                let Group { codes, scales } = Group::quantize_alone(self.precision(), values);
                let scales = scales.map(|scale| saturating_f16(scale).to_le_bytes());
                if self == Self::Q8_0 {
                    block[..2].copy_from_slice(&scales[0]);
                    block[2..].copy_from_slice(&codes);
                } else {
                    block[..4].copy_from_slice(scales.as_flattened());
                    let (low, high) = codes.split_at(GROUP_SIZE / 2);
                    block[4..]
                        .iter_mut()
                        .zip(low.iter().zip(high))
                        .for_each(|(byte, (low, high))| *byte = low | high << 4);
                }
            }
        });
        blocks
    }

    /// The first `values.len()` weights of the blocks in `bytes`: whole groups of 32.
    pub(crate) fn dequantize(self, bytes: &[u8], values: &mut [f32]) {
        specialised!(self, KIND => {
            for (index, values) in values.as_chunks_mut().0.iter_mut().enumerate() {
                *values = KIND.group(bytes, index).values(KIND.precision());
            }
        });
    }

    /// Packs rows of blocks losslessly to the device's format. [`Self::check`] tells whether it holds their scales.
    pub(crate) fn pack(self, tile: Tile<'_>, rows: &[&[u8]]) {
        specialised!(self, KIND => tile.fill(
            KIND.precision(),
            |row, index| KIND.group(rows[row], index),
            |row, index| KIND.super_scales(&rows[row][index * KIND.block_bytes()..][..KIND.block_bytes()]),
        ));
    }

    /// Checks the scales of the blocks in `bytes`.
    ///
    /// # Errors
    /// The index of the first group whose scale is not finite or too large for the device's format, and the scale.
    pub fn check(self, bytes: &[u8]) -> Result<(), (usize, f32)> {
        let bad = AtomicUsize::new(usize::MAX);
        parallel::for_each(bytes.chunks(CHUNK_BLOCKS * self.block_bytes()).enumerate(), |(chunk, bytes)| {
            let blocks = bytes.chunks_exact(self.block_bytes());
            // All scales of a block are products of the f16 in it and small integers: if one is bad, so is the first.
            let found = specialised!(self, KIND => {
                { blocks }.position(|block| !KIND.group(block, 0).fits(KIND.precision()))
            });
            if let Some(block) = found {
                bad.fetch_min(chunk * CHUNK_BLOCKS + block, Ordering::Relaxed);
            }
        });
        let index = bad.into_inner().checked_mul(self.block_len() / GROUP_SIZE);
        let Some(index) = index.filter(|index| *index < bytes.len()) else { return Ok(()) };
        let scales = self.group(bytes, index).scales;
        Err((index, scales.into_iter().find(|scale| !scale.is_finite()).unwrap_or(scales[1])))
    }

    /// Checks the blocks in `bytes` and packs them as one row.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn repack(self, bytes: &[u8]) -> Result<Packed, (usize, f32)> {
        self.check(bytes)?;
        let columns = bytes.len() / self.block_bytes() * self.block_len();
        let mut packed = Packed::default();
        packed.resize(self.precision(), columns, 1);
        packed.tiles(self.precision(), columns, 1, 0..1).into_iter().for_each(|tile| self.pack(tile, &[bytes]));
        Ok(packed)
    }
}

/// Sets bit 4 of code j to bit j of `high`. Inlined, it would keep the compiler from vectorising what is around it.
#[inline(never)]
fn add_fifth_bits(codes: &mut [u8; GROUP_SIZE], high: [u8; 4]) {
    for (codes, bits) in codes.as_chunks_mut().0.iter_mut().zip(high) {
        let fours = (u64::from(bits) | u64::from(bits) << 28) & 0x0000_000f_0000_000f;
        let pairs = (fours | fours << 14) & 0x0003_0003_0003_0003;
        let ones = (pairs | pairs << 7) & 0x0101_0101_0101_0101;
        *codes = (u64::from_le_bytes(*codes) | ones << 4).to_le_bytes();
    }
}

#[inline(always)]
fn half(bytes: &[u8], at: usize) -> f32 {
    f16_value(f16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

/// 32 of 256 weights with 6 bits: low halves in 128 bytes, two high bits each in 64, i8 scales of 16 weights, an f16.
#[inline(always)]
fn q6_block(block: &[u8], group: usize) -> Group {
    let (half_block, quarter) = (group / 4, group % 4);
    let low = &block[64 * half_block + 32 * (quarter % 2)..][..GROUP_SIZE];
    let high = &block[128 + 32 * half_block..][..GROUP_SIZE];
    let scales = BlockType::Q6K.super_scales(block).of_group(Precision::Q6, group);
    let mut codes = [0; GROUP_SIZE];
    for (code, (low, high)) in codes.iter_mut().zip(low.iter().zip(high)) {
        *code = low >> (4 * (quarter / 2)) & 15 | (high >> (2 * quarter) & 3) << 4;
    }
    Group { codes, scales }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{INTERLEAVE_ROWS, pack_rows};

    /// Blocks of pseudorandom bytes with finite scales.
    fn random_blocks(kind: BlockType, count: usize) -> Vec<u8> {
        let mut state = 1u32;
        let mut blocks: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            (state >> 24) as u8
        })
        .take(count * kind.block_bytes())
        .collect();
        let halves = match kind {
            BlockType::Q6K => 208..210,
            BlockType::Q4_0 | BlockType::Q5_0 | BlockType::Q8_0 => 0..2,
            _ => 0..4,
        };
        for block in blocks.chunks_exact_mut(kind.block_bytes()) {
            // Magnitudes below 2.
            block[halves.clone()].as_chunks_mut::<2>().0.iter_mut().for_each(|half| half[1] &= 0xbf);
        }
        blocks
    }

    #[test]
    fn rows_in_blocks_of_32_are_the_same_rows() {
        for kind in BlockType::ALL {
            let (precision, columns) = (kind.precision(), 3 * kind.block_len());
            for (waiting, count) in [(0, 1), (0, 32), (5, 27), (31, 2), (7, 90)] {
                let bytes = random_blocks(kind, 3 * count);
                let rows: Vec<&[u8]> = bytes.chunks_exact(kind.row_bytes(columns)).collect();
                let mut packed = Packed::default();
                let stored = precision.stored_rows(waiting + count);
                packed.resize(precision, columns, stored);
                packed.data.fill(99);
                packed.scales.fill(99);
                packed
                    .tiles(precision, columns, INTERLEAVE_ROWS, waiting..waiting + count)
                    .into_iter()
                    .rev()
                    .for_each(|tile| kind.pack(tile, &rows));
                let packed = packed.deinterleaved(precision, columns);
                let expected = kind.repack(&bytes).unwrap();
                let after = stored - waiting - count;
                let expect = |expected: &[u8], row_bytes: usize| {
                    [&vec![99; waiting * row_bytes], expected, &vec![0; after * row_bytes]].concat()
                };
                assert_eq!(packed.data, expect(&expected.data, precision.row_bytes(columns)), "{}", kind.name());
                assert_eq!(
                    packed.scales,
                    expect(&expected.scales, precision.row_scale_bytes(columns)),
                    "{}",
                    kind.name()
                );
            }
        }
    }

    #[test]
    fn scales_fit_if_the_device_format_holds_them_exactly() {
        for kind in BlockType::ALL {
            let at = if kind == BlockType::Q6K { 208 } else { 0 };
            let mut block = vec![0x55; kind.block_bytes()];
            for bits in 0..=u16::MAX {
                block[at..at + 2].copy_from_slice(&bits.to_le_bytes());
                let groups = (0..kind.block_len() / GROUP_SIZE).map(|index| kind.group(&block, index));
                let exact = |scale: f32| {
                    scale.is_finite()
                        && (!matches!(kind, BlockType::Q4_1 | BlockType::Q5_1)
                            || f16::from_f32(scale).to_f32() == scale)
                };
                let bad = groups.enumerate().find_map(|(index, group)| {
                    let scale = group.scales.into_iter().find(|scale| !scale.is_finite()).unwrap_or(group.scales[1]);
                    (!group.scales.into_iter().all(exact)).then_some((index, scale.to_bits()))
                });
                let checked = kind.check(&block).map_err(|(index, scale)| (index, scale.to_bits())).err();
                assert_eq!(checked, bad, "{} {bits:#x}", kind.name());
            }
            let mut blocks = random_blocks(kind, 3 * CHUNK_BLOCKS);
            let place = (2 * CHUNK_BLOCKS + 7) * kind.block_bytes() + at;
            blocks[place..place + 2].copy_from_slice(&f16::INFINITY.to_le_bytes());
            let group = (2 * CHUNK_BLOCKS + 7) * kind.block_len() / GROUP_SIZE;
            assert!(matches!(kind.check(&blocks), Err((index, _)) if index == group), "{}", kind.name());
        }
    }

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
