//! The formats weights have on the device, and how rows of f32 are packed into them.
//!
//! | precision | a row of k weights | scales and high bits, for each 32 |
//! | --- | --- | --- |
//! | f32 | k f32, padded to a multiple of 4 | |
//! | f16 | k f16, padded to a multiple of 8 | |
//! | q8 | k i8, padded to a multiple of 32 | f16 scale: w = scale q |
//! | q6 | low 4 bits of k u6, low half first | two words of high bits; f32 scales of the 16 and the 16: w = scale (q - 32) |
//! | q5k | low 4 bits of k u5 | a word of high bits; f32 scale and minimum: w = minimum + scale q |
//! | q5 | low 4 bits of k u5 | a word of high bits; f16 scale and minimum |
//! | q4k | k u4 | f32 scale and minimum |
//! | q4 | k u4 | f16 scale and minimum |
//!
//! q8 quantises exactly as GGUF's `Q8_0` and q4 as its `Q4_1` (nibbles and scales are laid out differently); all of
//! GGUF's blocks fit into these formats without loss ([`crate::weights::blocks`]).
//!
//! Quantised rows are interleaved by [`INTERLEAVE_ROWS`]: 32 weights of the first row, 32 of the second and so on, and
//! the words of scales likewise. The last block of rows is padded with zeros. Kernels work on four rows at a time and
//! read contiguous memory: 64 bytes of q4, and one 16-byte load for a word of each row. Eight neighbouring invocations
//! read 32 rows, also contiguous, which hardware prefetches. With blocks of four rows each invocation read a short run
//! of its own, and in one product a software adapter spent a quarter of the time at their beginnings.

use std::fmt;
use std::str::FromStr;

use half::f16;
use serde::{Deserialize, Serialize};

use crate::Error;

/// Weights that share a scale.
pub const GROUP_SIZE: usize = 32;
/// Rows whose groups of weights are interleaved, in the quantised formats.
pub const INTERLEAVE_ROWS: usize = 32;

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
        const F16: f32 = 65504.0;
        match self {
            Self::F16 | Self::Q4 | Self::Q5 => F16,
            Self::Q8 => 127.0 * F16,
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

    /// Rows that `rows` rows take up: whole blocks, where there are blocks.
    pub fn stored_rows(self, rows: usize) -> usize {
        if self.bits().is_some() { rows.next_multiple_of(INTERLEAVE_ROWS) } else { rows }
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
        columns.div_ceil(GROUP_SIZE) * self.group_scale_bytes()
    }

    fn group_scale_bytes(self) -> usize {
        match self.bits() {
            None => 0,
            Some(8) => 2,
            Some(bits) => (bits - 4) * 4 + if self.wide_scales() { 8 } else { 4 },
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
    pub(crate) fn quantize(precision: Precision, values: &[f32]) -> Self {
        match precision.bits() {
            Some(8) => symmetric(values, 127.0, 0.0),
            Some(6) => {
                let (low, high) = values.split_at(values.len().min(GROUP_SIZE / 2));
                let (low, high) = (symmetric(low, 31.0, 32.0), symmetric(high, 31.0, 32.0));
                let mut codes = low.codes;
                codes[GROUP_SIZE / 2..].copy_from_slice(&high.codes[..GROUP_SIZE / 2]);
                Group { codes, scales: [low.scales[0], high.scales[0]] }
            }
            bits => asymmetric(values, if bits == Some(5) { 31.0 } else { 15.0 }),
        }
    }

    /// The weights.
    pub fn values(&self, precision: Precision) -> [f32; GROUP_SIZE] {
        let [first, second] = self.scales;
        let mut index = 0;
        self.codes.map(|code| {
            index += 1;
            match precision {
                Precision::Q8 => first * f32::from(code as i8),
                Precision::Q6 => (if index <= GROUP_SIZE / 2 { first } else { second }) * (f32::from(code) - 32.0),
                _ => second + first * f32::from(code),
            }
        })
    }

    /// Whether the scales are finite and exactly representable at the precision.
    pub fn fits(&self, precision: Precision) -> bool {
        self.scales
            .iter()
            .all(|&scale| scale.is_finite() && (precision.wide_scales() || f16::from_f32(scale).to_f32() == scale))
    }
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
    /// The same rows interleaved by [`INTERLEAVE_ROWS`], the last block padded with zeros; unchanged for float formats.
    #[must_use]
    pub fn interleaved(&self, precision: Precision, columns: usize) -> Self {
        self.reordered(precision, columns, |index, chunks| index % chunks * INTERLEAVE_ROWS + index / chunks)
    }

    /// The rows in order, including the padding of the last block.
    #[must_use]
    pub fn deinterleaved(&self, precision: Precision, columns: usize) -> Self {
        self.reordered(precision, columns, |index, chunks| index % INTERLEAVE_ROWS * chunks + index / INTERLEAVE_ROWS)
    }

    /// Permutes the chunks of every block: `place(index, chunks)` is the new index of a chunk, in a block with `chunks`
    /// a row.
    fn reordered(&self, precision: Precision, columns: usize, place: impl Fn(usize, usize) -> usize) -> Self {
        if precision.bits().is_none() {
            return self.clone();
        }
        let reorder = |from: &[u8], row_bytes: usize, chunk: usize| {
            let chunks = row_bytes / chunk;
            let block = chunks * INTERLEAVE_ROWS;
            let mut to = vec![0; from.len().next_multiple_of(block * chunk)];
            for (index, bytes) in from.chunks_exact(chunk).enumerate() {
                let at = (index / block * block + place(index % block, chunks)) * chunk;
                to[at..at + chunk].copy_from_slice(bytes);
            }
            to
        };
        let [data, scales] = precision.chunks();
        Self {
            data: reorder(&self.data, precision.row_bytes(columns), data),
            scales: reorder(&self.scales, precision.row_scale_bytes(columns), scales),
        }
    }

    /// Takes the first rows out.
    #[cfg(feature = "gpu")]
    pub(super) fn take_rows(&mut self, precision: Precision, columns: usize, rows: usize) -> Self {
        let rows = rows.min(self.data.len() / precision.row_bytes(columns));
        Self {
            data: self.data.drain(..rows * precision.row_bytes(columns)).collect(),
            scales: self.scales.drain(..rows * precision.row_scale_bytes(columns)).collect(),
        }
    }

    /// Adds rows at the end.
    #[cfg(feature = "gpu")]
    pub(super) fn extend(&mut self, rows: &Self) {
        self.data.extend_from_slice(&rows.data);
        self.scales.extend_from_slice(&rows.scales);
    }

    /// Adds 32 weights of a quantised row at the end.
    pub fn push(&mut self, precision: Precision, group: &Group) {
        let Group { codes, scales } = group;
        match precision.bits() {
            None => {}
            Some(8) => {
                self.data.extend_from_slice(codes);
                self.scales.extend_from_slice(&saturating_f16(scales[0]).to_le_bytes());
            }
            Some(bits) => {
                self.data.extend(codes.chunks_exact(2).map(|pair| (pair[0] & 15) | (pair[1] & 15) << 4));
                let high = bits - 4;
                let packed = codes.iter().rev().fold(0u64, |word, code| word << high | u64::from(code >> 4));
                self.scales.extend_from_slice(&packed.to_le_bytes()[..4 * high]);
                for scale in scales {
                    if precision.wide_scales() {
                        self.scales.extend_from_slice(&scale.to_le_bytes());
                    } else {
                        self.scales.extend_from_slice(&saturating_f16(*scale).to_le_bytes());
                    }
                }
            }
        }
    }

    /// 32 weights of rows that are not interleaved.
    fn group(&self, precision: Precision, columns: usize, row: usize, group: usize) -> Group {
        let index = row * columns.div_ceil(GROUP_SIZE) + group;
        let half = |bytes: &[u8], index: usize| f16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]]).to_f32();
        let size = precision.group_scale_bytes();
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

/// Packs whole rows of `columns` weights, one after the other.
pub fn pack_rows(precision: Precision, columns: usize, rows: &[f32]) -> Packed {
    assert_eq!(rows.len() % columns, 0);
    let count = rows.len() / columns;
    let mut packed = Packed {
        data: Vec::with_capacity(count * precision.row_bytes(columns)),
        scales: Vec::with_capacity(count * precision.row_scale_bytes(columns)),
    };
    let padding = columns.next_multiple_of(precision.row_multiple()) - columns;
    for row in rows.chunks_exact(columns) {
        match precision {
            Precision::F32 => {
                packed.data.extend_from_slice(bytemuck::cast_slice(row));
                packed.data.resize(packed.data.len() + padding * 4, 0);
            }
            Precision::F16 => {
                packed.data.extend(row.iter().flat_map(|&value| saturating_f16(value).to_le_bytes()));
                packed.data.resize(packed.data.len() + padding * 2, 0);
            }
            quantised => {
                row.chunks(GROUP_SIZE).for_each(|group| packed.push(quantised, &Group::quantize(quantised, group)))
            }
        }
    }
    packed
}

/// f16 without infinities: a finite weight stays finite.
pub(crate) fn saturating_f16(value: f32) -> f16 {
    f16::from_f32(value.clamp(-65504.0, 65504.0))
}

/// As GGUF's `Q8_0`: scale = largest magnitude / `most`; q is rounded with the scale before it is itself rounded to
/// f16.
fn symmetric(values: &[f32], most: f32, offset: f32) -> Group {
    let largest = values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    let scale = largest / most;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let mut codes = [offset as u8; GROUP_SIZE];
    for (code, value) in codes.iter_mut().zip(values) {
        *code = ((value * inverse).round() + offset) as i8 as u8;
    }
    Group { codes, scales: [scale, 0.0] }
}

/// As GGUF's `Q4_1`: minimum and scale = range / `most`, both rounded to f16 after q is taken with the exact ones.
fn asymmetric(values: &[f32], most: f32) -> Group {
    let minimum = values.iter().copied().fold(f32::INFINITY, f32::min);
    let maximum = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let scale = (maximum - minimum) / most;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let mut codes = [0; GROUP_SIZE];
    for (code, value) in codes.iter_mut().zip(values) {
        *code = ((value - minimum) * inverse + 0.5).clamp(0.0, most) as u8;
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
