//! The formats weights have on the device, and how rows of f32 are packed into them.
//!
//! | precision | a row of k weights | scales and high bits, for each 32 |
//! | --- | --- | --- |
//! | f32 | k f32, padded to a multiple of 4 | |
//! | f16 | k f16, padded to a multiple of 8 | |
//! | q8 | k i8, padded to a multiple of 32 | f16 scale: w = scale q |
//! | q6 | low 4 bits of k u6, low half first | two words of high bits; two f32 scales, each of 16: w = scale (q - 32) |
//! | q5k | low 4 bits of k u5 | a word of high bits; f32 scale and minimum: w = minimum + scale q |
//! | q5 | low 4 bits of k u5 | a word of high bits; f16 scale and minimum |
//! | q4k | k u4 | f32 scale and minimum |
//! | q4 | k u4 | f16 scale and minimum |
//!
//! q8 quantises exactly as GGUF's `Q8_0` and q4 as its `Q4_1` (nibbles and scales are laid out differently); all of
//! GGUF's blocks fit into these formats without loss ([`crate::weights::blocks`]).
//!
//! Quantised rows are interleaved by [`INTERLEAVE_ROWS`]: 32 weights of the first row, 32 of the second and so on, and
//! the words of scales likewise. The last block of rows is padded with zeros. On GPUs neighbouring invocations read
//! neighbouring rows. Kernels for software adapters work on four rows at a time: 64 contiguous bytes of q4, and one
//! 16-byte load for a word of each row. With blocks of four rows only, each of their invocations read a short run of
//! its own, and in one product a software adapter spent a quarter of the time at the beginnings of these runs.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use half::f16;
use half::slice::HalfFloatSliceExt;
use serde::{Deserialize, Serialize};

use crate::{Error, parallel};

/// Weights that share a scale.
pub const GROUP_SIZE: usize = 32;
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
    /// 6-bit integers with a scale for each 16: 1 byte a weight (GGUF's `Q6_K`).
    Q6,
    /// 5-bit integers with an f32 scale and minimum for each 32: 0.875 bytes a weight (GGUF's `Q5_K`).
    Q5K,
    /// 5-bit integers with a scale and a minimum for each 32: 0.75 bytes a weight (GGUF's `Q5_0`, `Q5_1`).
    Q5,
    /// 4-bit integers with an f32 scale and minimum for each 32: 0.75 bytes a weight (GGUF's `Q4_K`).
    Q4K,
    /// 4-bit integers with a scale and a minimum for each 32: 0.625 bytes a weight.
    Q4,
}

impl Precision {
    /// All of them, widest first.
    pub const ALL: [Self; 8] = [Self::F32, Self::F16, Self::Q8, Self::Q6, Self::Q5K, Self::Q5, Self::Q4K, Self::Q4];
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
            Self::Q5K | Self::Q5 => Some(5),
            Self::Q4K | Self::Q4 => Some(4),
        }
    }

    /// Whether a group's scales are f32.
    pub fn wide_scales(self) -> bool {
        matches!(self, Self::Q6 | Self::Q5K | Self::Q4K)
    }

    /// The largest magnitude that a weight can have, where floats are converted: f16's, or what f16 scales reach.
    pub fn largest(self) -> f32 {
        match self {
            Self::F16 | Self::Q4 | Self::Q5 => LARGEST_F16,
            Self::Q8 => 127.0 * LARGEST_F16,
            Self::F32 | Self::Q6 | Self::Q5K | Self::Q4K => f32::MAX,
        }
    }

    /// Elements to which a row is padded: whole groups, or whole loads of 16 bytes.
    pub fn row_multiple(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 8,
            _ => GROUP_SIZE,
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
        columns.div_ceil(GROUP_SIZE) * self.group_bytes()[1]
    }

    /// Bytes of 32 quantised weights: of the weights, and of their scales and high bits.
    fn group_bytes(self) -> [usize; 2] {
        match self.bits() {
            None => [0, 0],
            Some(8) => [GROUP_SIZE, 2],
            Some(bits) => [GROUP_SIZE / 2, (bits - 4) * 4 + if self.wide_scales() { 8 } else { 4 }],
        }
    }

    /// Bytes of the interleaved units, of weights and of scales.
    fn chunks(self) -> [usize; 2] {
        if self == Self::Q8 { [GROUP_SIZE, 2] } else { [GROUP_SIZE / 2, 4] }
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
            Self::Q4K => "q4k",
            Self::Q4 => "q4",
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

impl Group {
    /// The integers for up to 32 weights at a quantised precision.
    #[inline(always)]
    pub(crate) fn quantize(precision: Precision, values: &[f32]) -> Self {
        match precision.bits() {
            Some(8) => symmetric(values, 127.0, 0),
            Some(6) => {
                let (low, high) = values.split_at(values.len().min(GROUP_SIZE / 2));
                let (low, high) = (symmetric(low, 31.0, 32), symmetric(high, 31.0, 32));
                let mut codes = low.codes;
                codes[GROUP_SIZE / 2..].copy_from_slice(&high.codes[..GROUP_SIZE / 2]);
                Group { codes, scales: [low.scales[0], high.scales[0]] }
            }
            bits => asymmetric(values, if bits == Some(5) { 31.0 } else { 15.0 }),
        }
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

    /// Whether the scales are finite and in the range of the precision's scales.
    #[inline(always)]
    pub fn fits(&self, precision: Precision) -> bool {
        let largest = if precision.wide_scales() { f32::MAX } else { LARGEST_F16 };
        self.scales.iter().all(|scale| scale.abs() <= largest)
    }

    /// The weights and the scales as they are stored; the first [`Precision::group_bytes`] of each array are in use.
    #[inline(always)]
    fn pack(&self, precision: Precision) -> ([u8; GROUP_SIZE], [u8; 16]) {
        let mut scales = [0; 16];
        let half = |scale: f32| saturating_f16(scale).to_le_bytes();
        let Some(high) = precision.bits().filter(|bits| *bits < 8).map(|bits| bits - 4) else {
            scales[..2].copy_from_slice(&half(self.scales[0]));
            return (self.codes, scales);
        };
        let mut data = [0; GROUP_SIZE];
        for (byte, codes) in data.iter_mut().zip(self.codes.as_chunks::<2>().0) {
            *byte = codes[0] & 15 | codes[1] << 4;
        }
        if high > 0 {
            let bits = if high == 1 { high_bits::<1>(&self.codes) } else { high_bits::<2>(&self.codes) };
            scales[..4 * high].copy_from_slice(&bits.to_le_bytes()[..4 * high]);
        }
        for (index, scale) in self.scales.into_iter().enumerate() {
            if precision.wide_scales() {
                scales[4 * (high + index)..][..4].copy_from_slice(&scale.to_le_bytes());
            } else {
                scales[4 * high + 2 * index..][..2].copy_from_slice(&half(scale));
            }
        }
        (data, scales)
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
        let groups = columns.div_ceil(GROUP_SIZE);
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
        let reorder = |from: &[u8], row_bytes: usize, chunk: usize| {
            let chunks = row_bytes / chunk;
            let block = chunks * INTERLEAVE_ROWS;
            let mut to = vec![0; from.len()];
            for (index, bytes) in from.chunks_exact(chunk).enumerate() {
                let (row, at) = (index % INTERLEAVE_ROWS, index % block / INTERLEAVE_ROWS);
                to[(index / block * block + row * chunks + at) * chunk..][..chunk].copy_from_slice(bytes);
            }
            to
        };
        let [data, scales] = precision.chunks();
        Self {
            data: reorder(&self.data, precision.row_bytes(columns), data),
            scales: reorder(&self.scales, precision.row_scale_bytes(columns), scales),
        }
    }

    /// 32 weights of rows that are not interleaved.
    fn group(&self, precision: Precision, columns: usize, row: usize, group: usize) -> Group {
        let index = row * columns.div_ceil(GROUP_SIZE) + group;
        let half = |bytes: &[u8], index: usize| f16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]]).to_f32();
        let [_, size] = precision.group_bytes();
        let scales = &self.scales[index * size..][..size];
        let Some(high) = precision.bits().filter(|bits| *bits < 8).map(|bits| bits - 4) else {
            let mut codes = [0; GROUP_SIZE];
            codes.copy_from_slice(&self.data[index * GROUP_SIZE..][..GROUP_SIZE]);
            return Group { codes, scales: [half(scales, 0), 0.0] };
        };
        let mut word = [0; 8];
        word[..4 * high].copy_from_slice(&scales[..4 * high]);
        let word = u64::from_le_bytes(word);
        let nibbles = &self.data[index * GROUP_SIZE / 2..][..GROUP_SIZE / 2];
        let codes = std::array::from_fn(|i| {
            let low = nibbles[i / 2] >> (4 * (i % 2)) & 15;
            low | ((word >> (i * high) & ((1 << high) - 1)) as u8) << 4
        });
        let tail = &scales[4 * high..];
        let scale = |i: usize| {
            if precision.wide_scales() { bytemuck::pod_read_unaligned(&tail[4 * i..4 * i + 4]) } else { half(tail, i) }
        };
        Group { codes, scales: [scale(0), scale(1)] }
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
            other => self.quantize(other, rows),
        }
    }

    #[inline(always)]
    fn quantize(self, precision: Precision, rows: &[&[f32]]) {
        self.fill(precision, |row, group| {
            let values = &rows[row][group * GROUP_SIZE..];
            Group::quantize(precision, &values[..values.len().min(GROUP_SIZE)])
        });
    }

    /// Packs the groups that `group` returns for a row and the index of a group in it. If the last block of rows is not
    /// full, the rest of it becomes zeros.
    #[inline(always)]
    pub(crate) fn fill(self, precision: Precision, group: impl Fn(usize, usize) -> Group) {
        let [data_chunk, scale_chunk] = precision.chunks();
        let [data_bytes, scale_bytes] = precision.group_bytes();
        let end = self.place + self.rows.len();
        for (place, row) in (self.place..).zip(self.rows) {
            let data = self.data.chunks_exact_mut(data_bytes * self.interleave);
            let scales = self.scales.chunks_exact_mut(scale_bytes * self.interleave);
            for (index, (data, scales)) in self.groups.clone().zip(data.zip(scales)) {
                let (weights, words) = group(row, index).pack(precision);
                data[place * data_chunk..][..data_chunk].copy_from_slice(&weights[..data_chunk]);
                for word in 0..scale_bytes / scale_chunk {
                    let place = (word * self.interleave + place) * scale_chunk;
                    scales[place..][..scale_chunk].copy_from_slice(&words[word * scale_chunk..][..scale_chunk]);
                }
            }
        }
        if end < self.interleave {
            for (bytes, chunk) in [(self.data, data_chunk), (self.scales, scale_chunk)] {
                bytes.chunks_exact_mut(chunk * self.interleave).for_each(|places| places[end * chunk..].fill(0));
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
                let (group, expected) = (Group::quantize(precision, &values), quantized(precision, &values));
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
