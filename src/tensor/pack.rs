//! The formats weights have on the device, and how rows of f32 are packed into them.
//!
//! | precision | a row of k weights | high bits and scales | bits a weight |
//! | --- | --- | --- | --- |
//! | f32 | k f32, padded to a multiple of 4 | | 32 |
//! | f16 | k f16, padded to a multiple of 8 | | 16 |
//! | q8 | k i8, padded to a multiple of 32 | f16 scale: w = scale q | 8.5 |
//! | q6 | low 4 bits of k u6 | two words of high bits; scales: w = scale (q - 32) | 6.5625 |
//! | q5k | low 4 bits of k u5 | a word of high bits; scales: w = scale q - minimum | 5.5 |
//! | q5 | low 4 bits of k u5 | a word of high bits; f16 scale and minimum: w = minimum + scale q | 6 |
//! | q5_0 | low 4 bits of k u5 | a word of high bits; f16 scale: w = scale (q - 16) | 5.5 |
//! | q4k | k u4 | scales: w = scale q - minimum | 4.5 |
//! | q4 | k u4 | f16 scale and minimum: w = minimum + scale q | 5 |
//! | q4_0 | k u4 | f16 scale: w = scale (q - 8) | 4.5 |
//!
//! The low half of a byte comes first. Scales and words of high bits are those of 32 weights, a group. q6, q5k and q4k
//! have superblocks of 256 weights, to which rows are padded: the high bits of its eight groups, then four words.
//!
//! * q6: 16 scales of 16 weights, i8; an f16, by which they are multiplied, follows the four words.
//! * q5k, q4k: two f16, by which the scales and the minimums are multiplied; for groups 0 to 3 and for groups 4 to 7 a
//!   word of bytes with the scale (6 bits) and the low 2 bits of the minimum; a word of nibbles with the high 4 bits of
//!   the minimums. A group needs three of these words.
//!
//! q8 quantises exactly as GGUF's `Q8_0` and q4 as its `Q4_1` (nibbles and scales are laid out differently); all of
//! GGUF's blocks fit into these formats without loss ([`crate::weights::blocks`]).
//!
//! Quantised rows are interleaved by [`INTERLEAVE_ROWS`]: 32 weights of the first row, 32 of the second and so on, and
//! each word and each f16 of a group or superblock likewise. The last block of rows is padded with zeros. On GPUs
//! neighbouring invocations read neighbouring rows. Kernels for software adapters work on four rows at a time: 64
//! contiguous bytes of q4, and one 16-byte load for a word of each row. With blocks of four rows only, each of their
//! invocations read a short run of its own, and in one product a software adapter spent a quarter of the time at the
//! beginnings of these runs.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use half::f16;
use half::slice::HalfFloatSliceExt;
use serde::{Deserialize, Serialize};

use crate::{Error, parallel};

/// Weights that share a scale.
pub const GROUP_SIZE: usize = 32;
/// Groups of a superblock, whose scales have a common scale.
pub(crate) const SUPERBLOCK_GROUPS: usize = 8;
/// Rows whose groups of weights are interleaved, in the quantised formats.
pub const INTERLEAVE_ROWS: usize = 32;

/// Most groups of a row in a [`Tile`]: with 32 rows 32768 weights, which take about 10 us.
const TILE_GROUPS: usize = 32;

/// How weights are stored on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats: bit-faithful, four bytes a weight.
    F32,
    /// 16-bit floats: two bytes a weight.
    F16,
    /// 8-bit integers with a scale for each 32: 1.06 bytes a weight.
    Q8,
    /// 6-bit integers with an 8-bit scale for each 16: 0.82 bytes a weight (GGUF's `Q6_K`).
    Q6,
    /// 5-bit integers with a 6-bit scale and minimum for each 32: 0.6875 bytes a weight (GGUF's `Q5_K`).
    Q5K,
    /// 5-bit integers with a scale and a minimum for each 32: 0.75 bytes a weight (GGUF's `Q5_1`).
    Q5,
    /// 5-bit integers with a scale for each 32: 0.6875 bytes a weight (GGUF's `Q5_0`).
    #[serde(rename = "q5_0")]
    Q5_0,
    /// 4-bit integers with a 6-bit scale and minimum for each 32: 0.5625 bytes a weight (GGUF's `Q4_K`).
    Q4K,
    /// 4-bit integers with a scale and a minimum for each 32: 0.625 bytes a weight (GGUF's `Q4_1`).
    Q4,
    /// 4-bit integers with a scale for each 32: 0.5625 bytes a weight (GGUF's `Q4_0`).
    #[serde(rename = "q4_0")]
    Q4_0,
}

/// How the scales of a quantised format are stored. Sizes are those of one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ScaleLayout {
    /// Groups whose scales are stored together: 1, or a superblock.
    pub groups: usize,
    /// Words of high bits of a group.
    pub high_words: usize,
    /// Words of scales.
    pub words: usize,
    /// f16 after the words: 0 or 1.
    pub halves: usize,
}

impl ScaleLayout {
    /// All words of `self.groups` groups: high bits and scales.
    fn all_words(self) -> usize {
        self.groups * self.high_words + self.words
    }

    /// Bytes of the high bits and scales of `self.groups` groups.
    fn bytes(self) -> usize {
        4 * self.all_words() + 2 * self.halves
    }
}

impl Precision {
    /// All of them, widest first.
    pub const ALL: [Self; 10] =
        [Self::F32, Self::F16, Self::Q8, Self::Q6, Self::Q5K, Self::Q5, Self::Q5_0, Self::Q4K, Self::Q4, Self::Q4_0];
    /// Those that a checkpoint can be loaded at; the others are for GGUF files.
    pub const CHOICES: [Self; 4] = [Self::F32, Self::F16, Self::Q8, Self::Q4];
    /// Those that image models are offered at.
    pub const IMAGE_CHOICES: [Self; 3] = [Self::F32, Self::F16, Self::Q8];

    /// Bits of an integer weight; `None` for floats.
    pub fn bits(self) -> Option<usize> {
        match self {
            Self::F32 | Self::F16 => None,
            Self::Q8 => Some(8),
            Self::Q6 => Some(6),
            Self::Q5K | Self::Q5 | Self::Q5_0 => Some(5),
            Self::Q4K | Self::Q4 | Self::Q4_0 => Some(4),
        }
    }

    /// How scales and high bits are stored. Floats have none.
    pub(crate) fn scale_layout(self) -> ScaleLayout {
        let (groups, words, halves) = match self {
            Self::F32 | Self::F16 => (1, 0, 0),
            Self::Q8 | Self::Q5_0 | Self::Q4_0 => (1, 0, 1),
            Self::Q5 | Self::Q4 => (1, 1, 0),
            Self::Q5K | Self::Q4K => (SUPERBLOCK_GROUPS, 4, 0),
            Self::Q6 => (SUPERBLOCK_GROUPS, 4, 1),
        };
        let high_words = match self.bits() {
            Some(bits @ 4..8) => bits - 4,
            _ => 0,
        };
        ScaleLayout { groups, high_words, words, halves }
    }

    /// Whether groups share scales of their scales.
    pub fn has_superblocks(self) -> bool {
        self.scale_layout().groups > 1
    }

    /// The integer that stands for zero, where it is the same for all groups of 4 or 5 bits.
    pub(crate) fn centre(self) -> Option<u8> {
        match self {
            Self::Q4_0 => Some(8),
            Self::Q5_0 => Some(16),
            _ => None,
        }
    }

    /// The largest magnitude that a weight can have, where floats are converted: what f16, or the scales, reach.
    pub fn largest(self) -> f32 {
        match self {
            Self::F32 => f32::MAX,
            Self::F16 | Self::Q4 | Self::Q5 => LARGEST_F16,
            Self::Q8 => 127.0 * LARGEST_F16,
            Self::Q6 => 31.0 * 127.0 * LARGEST_F16,
            Self::Q5K | Self::Q4K => 63.0 * LARGEST_F16,
            Self::Q5_0 => 16.0 * LARGEST_F16,
            Self::Q4_0 => 8.0 * LARGEST_F16,
        }
    }

    /// Elements to which a row is padded: whole groups or superblocks, or whole loads of 16 bytes.
    pub fn row_multiple(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 8,
            _ => GROUP_SIZE * self.scale_layout().groups,
        }
    }

    /// Rows that are interleaved on the device: 1 for the float formats.
    pub fn interleave(self) -> usize {
        if self.bits().is_some() { INTERLEAVE_ROWS } else { 1 }
    }

    /// Rows that `rows` rows take up: whole blocks, where there are blocks.
    pub fn stored_rows(self, rows: usize) -> usize {
        rows.next_multiple_of(self.interleave())
    }

    /// Length of a row of `columns` weights in fours, as kernels count it.
    pub fn row_fours(self, columns: usize) -> usize {
        columns.next_multiple_of(self.row_multiple()) / 4
    }

    /// Bytes of a row's weights (of their low 4 bits, where there are 5 or 6).
    pub fn row_bytes(self, columns: usize) -> usize {
        let padded = columns.next_multiple_of(self.row_multiple());
        match self.bits() {
            None if self == Self::F32 => padded * 4,
            None => padded * 2,
            Some(8) => padded,
            Some(_) => padded / 2,
        }
    }

    /// Bytes of a row's scales and high bits.
    pub fn row_scale_bytes(self, columns: usize) -> usize {
        let layout = self.scale_layout();
        columns.div_ceil(GROUP_SIZE * layout.groups) * layout.bytes()
    }

    /// Groups of a row, padding included.
    fn row_groups(self, columns: usize) -> usize {
        columns.next_multiple_of(self.row_multiple()).div_ceil(GROUP_SIZE)
    }

    /// Bytes of 32 quantised weights, without what their scales hold.
    fn group_bytes(self) -> usize {
        if self == Self::Q8 { GROUP_SIZE } else { GROUP_SIZE / 2 }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Q8 => "q8",
            Self::Q6 => "q6",
            Self::Q5K => "q5k",
            Self::Q5 => "q5",
            Self::Q5_0 => "q5_0",
            Self::Q4K => "q4k",
            Self::Q4 => "q4",
            Self::Q4_0 => "q4_0",
        })
    }
}

impl FromStr for Precision {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::CHOICES.into_iter().find(|precision| precision.to_string() == text).ok_or_else(|| Error::Unsupported {
            what: "precision".to_owned(),
            found: text.to_owned(),
            supported: "f32, f16, q8, q4".to_owned(),
        })
    }
}

/// 32 quantised weights of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Group {
    /// The integers, as wide as the precision has them; two's complement for q8.
    pub codes: [u8; GROUP_SIZE],
    /// Scale and minimum; for q8 only a scale; for q6 the scales of the two halves.
    pub scales: [f32; 2],
}

/// What the groups of a superblock have in common, and their scales in units of it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct SuperScales {
    /// The scale of the scales, and that of the minimums (0 for q6).
    pub units: [f16; 2],
    /// Scale and minimum of each group, 6 bits; for q6 the scales of its halves, i8.
    pub groups: [[u8; 2]; SUPERBLOCK_GROUPS],
}

impl SuperScales {
    /// The scales of a group, as [`Group`] has them.
    #[inline(always)]
    pub fn of_group(&self, precision: Precision, group: usize) -> [f32; 2] {
        let [scale, minimum] = self.units.map(f16_value);
        let stored = self.groups[group];
        if precision == Precision::Q6 {
            return stored.map(|stored| scale * f32::from(stored as i8));
        }
        // Exact in f32: 11 bits times 6.
        [scale * f32::from(stored[0]), -(minimum * f32::from(stored[1]))]
    }

    /// Scales for up to 256 values.
    fn for_values(precision: Precision, values: &[f32]) -> Self {
        let mut exact = [[0.0; 2]; SUPERBLOCK_GROUPS];
        for (scales, values) in exact.iter_mut().zip(values.chunks(GROUP_SIZE)) {
            *scales = if precision == Precision::Q6 {
                Group::quantize_alone(precision, values).scales
            } else {
                // The minimum is at most zero.
                let (low, high) =
                    values.iter().fold((0.0f32, f32::MIN), |(low, high), value| (low.min(*value), high.max(*value)));
                let most = if precision == Precision::Q5K { 31.0 } else { 15.0 };
                [(high - low).max(0.0) / most, -low]
            };
        }
        let largest = |index: usize| exact.iter().fold(0.0f32, |largest, scales| largest.max(scales[index]));
        let [units, most] = if precision == Precision::Q6 {
            [[largest(0).max(largest(1)) / 127.0, 0.0], [127.0; 2]]
        } else {
            [[largest(0) / 63.0, largest(1) / 63.0], [63.0; 2]]
        };
        let units = units.map(saturating_f16);
        let groups = exact.map(|scales| {
            std::array::from_fn(|index| {
                let unit = f16_value(units[if precision == Precision::Q6 { 0 } else { index }]);
                if unit == 0.0 { 0 } else { (scales[index] / unit).round().min(most[index]) as u8 }
            })
        });
        Self { units, groups }
    }

    /// The words, and for q6 the f16 after them.
    #[inline(always)]
    fn pack(&self, precision: Precision) -> [u8; 18] {
        let mut bytes = [0; 18];
        let [scale, minimum] = self.units.map(f16::to_le_bytes);
        if precision == Precision::Q6 {
            bytes[..16].copy_from_slice(self.groups.as_flattened());
            bytes[16..].copy_from_slice(&scale);
            return bytes;
        }
        bytes[..2].copy_from_slice(&scale);
        bytes[2..4].copy_from_slice(&minimum);
        for (byte, [scale, minimum]) in bytes[4..12].iter_mut().zip(self.groups) {
            *byte = scale | minimum << 6;
        }
        for (byte, pair) in bytes[12..16].iter_mut().zip(self.groups.as_chunks::<2>().0) {
            *byte = pair[0][1] >> 2 | pair[1][1] >> 2 << 4;
        }
        bytes
    }

    fn unpack(precision: Precision, bytes: &[u8]) -> Self {
        let half = |at: usize| f16::from_le_bytes([bytes[at], bytes[at + 1]]);
        if precision == Precision::Q6 {
            let groups = std::array::from_fn(|group| [bytes[2 * group], bytes[2 * group + 1]]);
            return Self { units: [half(16), f16::ZERO], groups };
        }
        let groups = std::array::from_fn(|group| {
            let (low, high) = (bytes[4 + group], bytes[12 + group / 2] >> (4 * (group % 2)) & 15);
            [low & 63, low >> 6 | high << 2]
        });
        Self { units: [half(0), half(2)], groups }
    }
}

impl Group {
    /// The integers for up to 32 weights at a quantised precision, with scales that no other group shares.
    #[inline(always)]
    pub(crate) fn quantize_alone(precision: Precision, values: &[f32]) -> Self {
        match precision {
            Precision::Q8 => symmetric(values, 127.0, 0),
            Precision::Q6 => {
                let (low, high) = values.split_at(values.len().min(GROUP_SIZE / 2));
                let (low, high) = (symmetric(low, 31.0, 32), symmetric(high, 31.0, 32));
                let mut codes = low.codes;
                codes[GROUP_SIZE / 2..].copy_from_slice(&high.codes[..GROUP_SIZE / 2]);
                Group { codes, scales: [low.scales[0], high.scales[0]] }
            }
            Precision::Q5_0 => centred(values, 16),
            Precision::Q4_0 => centred(values, 8),
            Precision::Q5 | Precision::Q5K => asymmetric(values, 31.0),
            _ => asymmetric(values, 15.0),
        }
    }

    /// The integers for up to 32 weights with given scales.
    fn quantize_with(precision: Precision, values: &[f32], scales: [f32; 2]) -> Self {
        let six = precision == Precision::Q6;
        let most = if six { 63.0 } else { ((1 << precision.bits().unwrap_or(4)) - 1) as f32 };
        let mut codes = [if six { 32 } else { 0 }; GROUP_SIZE];
        for (index, (code, value)) in codes.iter_mut().zip(values).enumerate() {
            let (scale, zero) = match six {
                true => (scales[index / (GROUP_SIZE / 2)], 32.0),
                false => (scales[0], -scales[1] / scales[0]),
            };
            if scale != 0.0 {
                *code = (value / scale + zero).round().clamp(0.0, most) as u8;
            }
        }
        Group { codes, scales }
    }

    /// The weights.
    #[inline(always)]
    pub fn values(&self, precision: Precision) -> [f32; GROUP_SIZE] {
        let [first, second] = self.scales;
        let mut values = [0.0; GROUP_SIZE];
        for (index, (value, code)) in values.iter_mut().zip(self.codes).enumerate() {
            *value = match precision {
                Precision::Q8 => first * f32::from(code as i8),
                Precision::Q6 => (if index < GROUP_SIZE / 2 { first } else { second }) * (f32::from(code) - 32.0),
                _ => second + first * f32::from(code),
            };
        }
        values
    }

    /// Whether the scales are finite and in the range of the precision's scales. Only those of q4 and q5 can exceed
    /// f16: other blocks store the f16 itself.
    #[inline(always)]
    pub fn fits(&self, precision: Precision) -> bool {
        let largest = if matches!(precision, Precision::Q4 | Precision::Q5) { LARGEST_F16 } else { f32::MAX };
        self.scales.iter().all(|scale| scale.abs() <= largest)
    }

    /// The weights as they are stored, without high bits: the first [`Precision::group_bytes`] are in use.
    #[inline(always)]
    fn pack(&self, precision: Precision) -> [u8; GROUP_SIZE] {
        if precision == Precision::Q8 {
            return self.codes;
        }
        let mut data = [0; GROUP_SIZE];
        for (byte, codes) in data.iter_mut().zip(self.codes.as_chunks::<2>().0) {
            *byte = codes[0] & 15 | codes[1] << 4;
        }
        data
    }

    /// The words of high bits.
    #[inline(always)]
    fn pack_high(&self, precision: Precision) -> [u8; 8] {
        match precision.scale_layout().high_words {
            0 => 0,
            1 => high_bits::<1>(&self.codes),
            _ => high_bits::<2>(&self.codes),
        }
        .to_le_bytes()
    }

    /// The scales as f16.
    #[inline(always)]
    fn pack_scales(&self) -> [u8; 4] {
        let [first, second] = self.scales.map(|scale| saturating_f16(scale).to_le_bytes());
        [first[0], first[1], second[0], second[1]]
    }
}

/// The `COUNT` bits (1 or 2) above the low 4 of each integer, without gaps. Inlined, it would keep the compiler from
/// vectorising what is around it.
#[inline(never)]
fn high_bits<const COUNT: usize>(codes: &[u8; GROUP_SIZE]) -> u64 {
    let mask = (1u64 << COUNT) - 1;
    // In the product, the bits of byte i are at 24 + `COUNT` i, and nothing carries.
    let factor = (0..4).fold(0, |factor, i| factor | 1 << (24 - (8 - COUNT) * i));
    codes.as_chunks().0.iter().rev().fold(0, |word, codes| {
        let bits = u64::from(u32::from_le_bytes(*codes)) >> 4 & (mask * 0x0101_0101);
        word << (4 * COUNT) | (bits * factor) >> 24 & ((1 << (4 * COUNT)) - 1)
    })
}

/// Packed rows, ready to be written to the device.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Packed {
    /// The weights.
    pub data: Vec<u8>,
    /// Scales and high bits; empty for f32 and f16.
    pub scales: Vec<u8>,
}

impl Packed {
    /// Makes room for `rows` rows. The content is undefined where there were other rows, and zeros elsewhere.
    pub(crate) fn resize(&mut self, precision: Precision, columns: usize, rows: usize) {
        self.data.resize(rows * precision.row_bytes(columns), 0);
        self.scales.resize(rows * precision.row_scale_bytes(columns), 0);
    }

    /// The places of the rows at positions `rows`, which begin in the first block of `interleave` rows.
    pub(crate) fn tiles(
        &mut self,
        precision: Precision,
        columns: usize,
        interleave: usize,
        rows: Range<usize>,
    ) -> Vec<Tile<'_>> {
        let groups = precision.row_groups(columns);
        let step = if interleave == 1 { groups.max(1) } else { TILE_GROUPS };
        fn split<'a>(from: &mut &'a mut [u8], bytes: usize) -> &'a mut [u8] {
            from.split_off_mut(..bytes).unwrap_or_default()
        }
        let (mut data, mut scales) = (&mut self.data[..], &mut self.scales[..]);
        let mut tiles = Vec::new();
        for first in (0..rows.end).step_by(interleave) {
            let (start, end) = (rows.start.max(first), rows.end.min(first + interleave));
            for group in (0..groups).step_by(step) {
                let taken = step.min(groups - group);
                // A tile of floats has whole rows.
                let bytes = |row_bytes: usize| interleave * row_bytes * taken / groups;
                tiles.push(Tile {
                    rows: start - rows.start..end - rows.start,
                    groups: group..group + taken,
                    interleave,
                    place: start - first,
                    data: split(&mut data, bytes(precision.row_bytes(columns))),
                    scales: split(&mut scales, bytes(precision.row_scale_bytes(columns))),
                });
            }
        }
        tiles
    }

    /// Interleaved rows in order, including the padding of the last block; unchanged for float formats.
    #[must_use]
    pub fn deinterleaved(&self, precision: Precision, columns: usize) -> Self {
        if precision.bits().is_none() {
            return self.clone();
        }
        // Words of 32 rows, then f16 of 32 rows, and so on for each group or superblock.
        let reorder = |from: &[u8], row_bytes: usize, [first, second]: [usize; 2], chunk: usize| {
            let mut to = vec![0; from.len()];
            let block = (row_bytes * INTERLEAVE_ROWS).max(1);
            for (from, to) in from.chunks_exact(block).zip(to.chunks_exact_mut(block)) {
                let (mut at, mut place) = (0, 0);
                while place < row_bytes {
                    let within = place % (first + second);
                    let chunk = if within < first { chunk } else { 2 };
                    for row in 0..INTERLEAVE_ROWS {
                        to[row * row_bytes + place..][..chunk].copy_from_slice(&from[at..at + chunk]);
                        at += chunk;
                    }
                    place += chunk;
                }
            }
            to
        };
        let (layout, group_bytes) = (precision.scale_layout(), precision.group_bytes());
        let unit = [4 * layout.all_words(), 2 * layout.halves];
        Self {
            data: reorder(&self.data, precision.row_bytes(columns), [group_bytes, 0], group_bytes),
            scales: reorder(&self.scales, precision.row_scale_bytes(columns), unit, 4),
        }
    }

    /// 32 weights of rows that are not interleaved.
    fn group(&self, precision: Precision, columns: usize, row: usize, group: usize) -> Group {
        let layout = precision.scale_layout();
        let index = row * precision.row_groups(columns) + group;
        let bytes = &self.scales[index / layout.groups * layout.bytes()..][..layout.bytes()];
        let (all_high, scales) = bytes.split_at(4 * layout.groups * layout.high_words);
        let half = |index: usize| f16::from_le_bytes([scales[2 * index], scales[2 * index + 1]]).to_f32();
        let within = index % layout.groups;
        let scales = match precision {
            Precision::Q8 => [half(0), 0.0],
            Precision::Q4 | Precision::Q5 => [half(0), half(1)],
            Precision::Q4_0 | Precision::Q5_0 => [half(0), -f32::from(precision.centre().unwrap_or(0)) * half(0)],
            _ => SuperScales::unpack(precision, scales).of_group(precision, within),
        };
        let data = &self.data[index * precision.group_bytes()..][..precision.group_bytes()];
        if precision == Precision::Q8 {
            return Group { codes: std::array::from_fn(|i| data[i]), scales };
        }
        let high = layout.high_words;
        let mut word = [0; 8];
        word[..4 * high].copy_from_slice(&all_high[4 * high * within..][..4 * high]);
        let word = u64::from_le_bytes(word);
        let codes = std::array::from_fn(|i| {
            let low = data[i / 2] >> (4 * (i % 2)) & 15;
            low | ((word >> (i * high) & ((1 << high) - 1)) as u8) << 4
        });
        Group { codes, scales }
    }
}

/// The places of some groups of neighbouring rows in [`Packed`] rows. Tiles can be filled in any order, and by
/// different threads.
#[derive(Debug)]
pub struct Tile<'a> {
    /// The rows, counted from the first that is packed.
    rows: Range<usize>,
    /// The groups of each row.
    groups: Range<usize>,
    /// Rows in a block.
    interleave: usize,
    /// The place of the first of `rows` in its block.
    place: usize,
    data: &'a mut [u8],
    scales: &'a mut [u8],
}

impl Tile<'_> {
    /// Packs rows of f32, quantised if the precision is.
    pub(crate) fn pack(self, precision: Precision, rows: &[&[f32]]) {
        match precision {
            Precision::F32 => {
                for row in &rows[self.rows] {
                    let (values, padding) = self.data.split_at_mut(size_of_val(*row));
                    values.copy_from_slice(bytemuck::cast_slice(row));
                    padding.fill(0);
                }
            }
            Precision::F16 => {
                let mut halves = Vec::new();
                for row in &rows[self.rows] {
                    let values: Vec<f32> = row.iter().map(|value| value.clamp(-LARGEST_F16, LARGEST_F16)).collect();
                    halves.resize(values.len(), f16::ZERO);
                    halves.convert_from_f32_slice(&values);
                    let (packed, padding) = self.data.split_at_mut(size_of_val(&halves[..]));
                    packed.copy_from_slice(bytemuck::cast_slice(&halves));
                    padding.fill(0);
                }
            }
            // The compiler specialises the loops for a constant precision.
            Precision::Q8 => self.quantize(Precision::Q8, rows),
            Precision::Q4 => self.quantize(Precision::Q4, rows),
            other if other.has_superblocks() => self.quantize_superblocks(other, rows),
            other => self.quantize(other, rows),
        }
    }

    #[inline(always)]
    fn quantize(self, precision: Precision, rows: &[&[f32]]) {
        self.fill(
            precision,
            |row, group| {
                let values = &rows[row][group * GROUP_SIZE..];
                Group::quantize_alone(precision, &values[..values.len().min(GROUP_SIZE)])
            },
            |_, _| SuperScales::default(),
        );
    }

    fn quantize_superblocks(self, precision: Precision, rows: &[&[f32]]) {
        const SIZE: usize = SUPERBLOCK_GROUPS * GROUP_SIZE;
        let (first_row, first) = (self.rows.start, self.groups.start / SUPERBLOCK_GROUPS);
        let blocks = self.groups.len() / SUPERBLOCK_GROUPS;
        let part = |row: usize, start: usize, most: usize| {
            let values = rows[row].get(start..).unwrap_or_default();
            &values[..values.len().min(most)]
        };
        let scales: Vec<SuperScales> = { self.rows.clone() }
            .flat_map(|row| (first..first + blocks).map(move |block| (row, block)))
            .map(|(row, block)| SuperScales::for_values(precision, part(row, block * SIZE, SIZE)))
            .collect();
        let of = |row: usize, block: usize| scales[(row - first_row) * blocks + block - first];
        self.fill(
            precision,
            |row, group| {
                let scales = of(row, group / SUPERBLOCK_GROUPS).of_group(precision, group % SUPERBLOCK_GROUPS);
                Group::quantize_with(precision, part(row, group * GROUP_SIZE, GROUP_SIZE), scales)
            },
            of,
        );
    }

    /// Packs the groups that `group` returns for a row and the index of a group in it, with the scales that `shared`
    /// returns for a row and the index of a superblock (in formats that have superblocks). If the last block of rows is
    /// not full, the rest of it becomes zeros.
    #[inline(always)]
    pub(crate) fn fill(
        self,
        precision: Precision,
        group: impl Fn(usize, usize) -> Group,
        shared: impl Fn(usize, usize) -> SuperScales,
    ) {
        let (layout, group_bytes) = (precision.scale_layout(), precision.group_bytes());
        let (interleave, end) = (self.interleave, self.place + self.rows.len());
        // In the words of a superblock (or group), and the f16 after them.
        let place_word = |scales: &mut [u8], place: usize, word: usize, bytes: &[u8]| {
            scales[4 * (word * interleave + place)..][..4].copy_from_slice(&bytes[..4]);
        };
        let halves = 4 * layout.all_words() * interleave;
        for (place, row) in (self.place..).zip(self.rows) {
            let data = self.data.chunks_exact_mut(group_bytes * interleave * layout.groups);
            let scales = self.scales.chunks_exact_mut(layout.bytes() * interleave);
            for (block, (data, scales)) in (self.groups.start / layout.groups..).zip(data.zip(scales)) {
                for within in 0..layout.groups {
                    let group = group(row, block * layout.groups + within);
                    data[(within * interleave + place) * group_bytes..][..group_bytes]
                        .copy_from_slice(&group.pack(precision)[..group_bytes]);
                    let high = group.pack_high(precision);
                    for word in 0..layout.high_words {
                        place_word(scales, place, within * layout.high_words + word, &high[4 * word..]);
                    }
                    if layout.groups == 1 {
                        let stored = group.pack_scales();
                        if layout.words == 1 {
                            place_word(scales, place, layout.high_words, &stored);
                        } else {
                            scales[halves + 2 * place..][..2].copy_from_slice(&stored[..2]);
                        }
                    }
                }
                if layout.groups > 1 {
                    let stored = shared(row, block).pack(precision);
                    for word in 0..layout.words {
                        place_word(scales, place, layout.groups * layout.high_words + word, &stored[4 * word..]);
                    }
                    if layout.halves == 1 {
                        scales[halves + 2 * place..][..2].copy_from_slice(&stored[16..]);
                    }
                }
            }
        }
        if end < interleave {
            let data = self.data.chunks_exact_mut(group_bytes * interleave);
            data.for_each(|places| places[end * group_bytes..].fill(0));
            for scales in self.scales.chunks_exact_mut((layout.bytes() * interleave).max(1)) {
                let (words, halves) = scales.split_at_mut(halves);
                words.chunks_exact_mut(4 * interleave).for_each(|places| places[4 * end..].fill(0));
                halves.chunks_exact_mut(2 * interleave).for_each(|places| places[2 * end..].fill(0));
            }
        }
    }
}

/// Packs whole rows of `columns` weights, one after the other.
pub fn pack_rows(precision: Precision, columns: usize, rows: &[f32]) -> Packed {
    assert_eq!(rows.len() % columns, 0);
    let rows: Vec<&[f32]> = rows.chunks_exact(columns).collect();
    let mut packed = Packed::default();
    packed.resize(precision, columns, rows.len());
    parallel::for_each(packed.tiles(precision, columns, 1, 0..rows.len()), |tile| tile.pack(precision, &rows));
    packed
}

/// The largest finite f16.
const LARGEST_F16: f32 = 65504.0;

/// f16 without infinities: a finite weight stays finite.
///
/// The conversions of `half` ask for the processor's instructions each time and are not inlined; their fallbacks
/// branch.
#[inline(always)]
pub(crate) fn saturating_f16(value: f32) -> f16 {
    const SMALLEST_NORMAL: f32 = 1.0 / 16384.0;
    let magnitude = value.abs().clamp(0.0, LARGEST_F16);
    let bits = magnitude.to_bits();
    // Rounded to nearest, ties to even, under the exponent's new bias.
    let normal = (bits.wrapping_sub(112 << 23) + 0xfff + (bits >> 13 & 1)) >> 13;
    // The sum is rounded to multiples of 2^-24, as subnormal numbers are.
    let subnormal = (magnitude + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let rounded = if magnitude < SMALLEST_NORMAL { subnormal } else { normal } as u16;
    let rounded = if value.is_nan() { f16::NAN.to_bits() } else { rounded };
    f16::from_bits(rounded | (value.to_bits() >> 16) as u16 & 0x8000)
}

/// The value of an f16: as `half` converts it, except for the payload of NaN.
#[inline(always)]
pub(crate) fn f16_value(half: f16) -> f32 {
    let magnitude = u32::from(half.to_bits() & 0x7fff);
    let normal = f32::from_bits((magnitude << 13) + (112 << 23));
    let subnormal = magnitude as f32 * (1.0 / 16_777_216.0);
    let value = if magnitude < 0x400 { subnormal } else { normal };
    let value = if magnitude < 0x7c00 { value } else { f32::from_bits(magnitude << 13 | 0x7f80_0000) };
    f32::from_bits(value.to_bits() | u32::from(half.to_bits() & 0x8000) << 16)
}

/// The bits of a float as an integer in the order of floats, and back. Minima of integers vectorise.
#[inline(always)]
fn in_order(bits: i32) -> i32 {
    bits ^ (bits >> 31 & i32::MAX)
}

/// The integer part of a number from 0 to 2^22, NaN for NaN. Unlike `trunc`, it vectorises on every processor.
#[inline(always)]
fn integer_part(value: f32) -> f32 {
    // The unit in the last place is 1.
    const SHIFT: f32 = 8_388_608.0;
    let rounded = (value + SHIFT) - SHIFT;
    if rounded > value { rounded - 1.0 } else { rounded }
}

/// The low byte of an integer of a magnitude up to 2^22, 0 for NaN. Casts check the range of each value, one by one.
#[inline(always)]
fn low_byte(integer: f32) -> u8 {
    (integer + 12_582_912.0).to_bits() as u8
}

/// As GGUF's `Q8_0`: scale = largest magnitude / `most`; q is rounded with the scale before it is itself rounded to
/// f16.
#[inline(always)]
fn symmetric(values: &[f32], most: f32, offset: u8) -> Group {
    // The float below 0.5. If it is added before truncation, halves are rounded away from zero, as `round` does.
    const HALF: f32 = 0.5 - f32::EPSILON / 4.0;
    let largest = values.iter().fold(0, |largest, value| largest.max(value.abs().to_bits() as i32));
    let scale = f32::from_bits(largest as u32) / most;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let mut codes = [offset; GROUP_SIZE];
    for (code, value) in codes.iter_mut().zip(values) {
        let value = value * inverse;
        let rounded = integer_part((value.abs() + HALF).clamp(0.0, 128.0)).copysign(value);
        *code = low_byte(rounded.clamp(-128.0, 127.0)).wrapping_add(offset);
    }
    Group { codes, scales: [scale, 0.0] }
}

/// As GGUF's `Q4_0` and `Q5_0`: the value of the largest magnitude is -`centre` times the scale.
fn centred(values: &[f32], centre: u8) -> Group {
    let zero = f32::from(centre);
    let largest =
        values.iter().fold(0.0f32, |largest, value| if value.abs() > largest.abs() { *value } else { largest });
    let scale = largest / -zero;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let mut codes = [centre; GROUP_SIZE];
    for (code, value) in codes.iter_mut().zip(values) {
        *code = (value * inverse + zero + 0.5).clamp(0.0, 2.0 * zero - 1.0) as u8;
    }
    Group { codes, scales: [scale, scale * -zero] }
}

/// As GGUF's `Q4_1`: minimum and scale = range / `most`, both rounded to f16 after q is taken with the exact ones.
#[inline(always)]
fn asymmetric(values: &[f32], most: f32) -> Group {
    let ordered = values.iter().map(|value| in_order(value.to_bits() as i32));
    let (minimum, maximum) = ordered.fold((i32::MAX, i32::MIN), |(low, high), bits| (low.min(bits), high.max(bits)));
    let [minimum, maximum] = [minimum, maximum].map(|bits| f32::from_bits(in_order(bits) as u32));
    let scale = (maximum - minimum) / most;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let mut codes = [0; GROUP_SIZE];
    for (code, value) in codes.iter_mut().zip(values) {
        *code = low_byte(integer_part(((value - minimum) * inverse + 0.5).clamp(0.0, most)));
    }
    Group { codes, scales: [scale, minimum] }
}

/// The weights that packed rows, one after the other, stand for: what kernels compute with, up to rounding.
pub fn dequantize(precision: Precision, columns: usize, packed: &Packed) -> Vec<f32> {
    let row_bytes = precision.row_bytes(columns);
    let mut values = Vec::with_capacity(packed.data.len() / row_bytes * columns);
    for (row, data) in packed.data.chunks_exact(row_bytes).enumerate() {
        match precision {
            Precision::F32 => {
                values.extend(data[..columns * 4].chunks_exact(4).map(bytemuck::pod_read_unaligned::<f32>))
            }
            Precision::F16 => values.extend(
                data[..columns * 2].chunks_exact(2).map(|half| f16::from_le_bytes([half[0], half[1]]).to_f32()),
            ),
            quantised => {
                for first in (0..columns).step_by(GROUP_SIZE) {
                    let group = packed.group(quantised, columns, row, first / GROUP_SIZE).values(quantised);
                    values.extend_from_slice(&group[..GROUP_SIZE.min(columns - first)]);
                }
            }
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definitions of `Q8_0` and `Q4_1`, value by value.
    fn quantized(precision: Precision, values: &[f32]) -> Group {
        let mut codes = [0; GROUP_SIZE];
        if precision == Precision::Q8 {
            let scale = values.iter().fold(0.0f32, |largest, value| largest.max(value.abs())) / 127.0;
            let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
            codes.iter_mut().zip(values).for_each(|(code, value)| *code = (value * inverse).round() as i8 as u8);
            return Group { codes, scales: [scale, 0.0] };
        }
        let minimum = values.iter().copied().fold(f32::INFINITY, f32::min);
        let scale = (values.iter().copied().fold(f32::NEG_INFINITY, f32::max) - minimum) / 15.0;
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        for (code, value) in codes.iter_mut().zip(values) {
            *code = ((value - minimum) * inverse + 0.5).clamp(0.0, 15.0) as u8;
        }
        Group { codes, scales: [scale, minimum] }
    }

    #[test]
    fn quantising_follows_the_definitions_bit_for_bit() {
        let mut state = 1u32;
        let mut random = || {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            state
        };
        for case in 0..20_000 {
            let length = if case % 4 == 0 { 1 + random() as usize % GROUP_SIZE } else { GROUP_SIZE };
            let scale = f32::from_bits(random() % 0x7e00_0000);
            let values: Vec<f32> = match case % 3 {
                // Halves, which are rounded away from zero.
                0 => (0..length).map(|i| if i == 0 { 127.0 } else { (random() % 509) as f32 / 2.0 - 127.0 }).collect(),
                _ => (0..length).map(|_| (random() as f32 / u32::MAX as f32 - 0.4) * scale).collect(),
            };
            for precision in [Precision::Q8, Precision::Q4] {
                let (group, expected) = (Group::quantize_alone(precision, &values), quantized(precision, &values));
                assert_eq!(group.codes, expected.codes, "{precision} of {values:?}");
                assert_eq!(
                    group.scales.map(f32::to_bits),
                    expected.scales.map(f32::to_bits),
                    "{precision} of {values:?}"
                );
            }
        }
    }

    #[test]
    fn halves_convert_as_in_the_half_crate() {
        for bits in 0..=u16::MAX {
            let (half, value) = (f16::from_bits(bits), f16_value(f16::from_bits(bits)));
            assert!(value.to_bits() == half.to_f32().to_bits() || value.is_nan() && half.is_nan(), "{bits:#x}");
            // The value, its neighbours, the middle between it and the next, and the neighbours of that.
            let middle = (half.to_f32() + f16::from_bits(bits ^ 1).to_f32()) / 2.0;
            for value in [half.to_f32(), middle] {
                for value in [value.next_down(), value, value.next_up()] {
                    let expected = f16::from_f32(value.clamp(-LARGEST_F16, LARGEST_F16));
                    let found = saturating_f16(value);
                    assert!(found.to_bits() == expected.to_bits() || value.is_nan() && found.is_nan(), "{value}");
                }
            }
        }
    }

    #[test]
    fn high_bits_of_integers_are_packed() {
        let codes: [u8; GROUP_SIZE] = std::array::from_fn(|i| (i * i * 7 + i) as u8 & 0x3f);
        let expected = |bits: u32| {
            codes.iter().rev().fold(0u64, |word, code| word << bits | u64::from(code >> 4 & ((1 << bits) - 1)))
        };
        assert_eq!((high_bits::<1>(&codes), high_bits::<2>(&codes)), (expected(1), expected(2)));
    }
}
