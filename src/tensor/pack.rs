//! The formats weights have on the device, and how rows of f32 are packed into them.
//!
//! | precision | a row of k weights | beside it |
//! | --- | --- | --- |
//! | f32 | k f32, padded to a multiple of 4 | |
//! | f16 | k f16, padded to a multiple of 4 | |
//! | q8 | k i8, padded to a multiple of 32 | an f16 scale for each 32: w = scale q |
//! | q4 | k u4, padded to a multiple of 32, low half first | f16 scale and minimum for each 32: w = minimum + scale q |
//!
//! q8 quantises exactly as GGUF's `Q8_0` and q4 as its `Q4_1` (nibbles and scales are laid out differently).
//!
//! The quantised formats go in blocks of [`BLOCK_ROWS`] rows, the last one filled up with zeros: the block's rows take turns,
//! each with 32 weights, and so do their scales. Kernels work on four rows at a time, and what they read together lies
//! together: 64 bytes of q4, and one 16-byte load for four rows' scales.

use std::fmt;
use std::str::FromStr;

use half::f16;

use crate::Error;

/// Weights that share a scale.
pub const GROUP: usize = 32;

/// Rows whose groups of weights take turns, in the quantised formats.
pub const BLOCK_ROWS: usize = 4;

/// How weights are stored on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Precision {
    /// 32-bit floats: bit-faithful, four bytes a weight.
    F32,
    /// 16-bit floats: two bytes a weight.
    F16,
    /// 8-bit integers with a scale for each 32: 1.06 bytes a weight.
    Q8,
    /// 4-bit integers with a scale and a minimum for each 32: 0.625 bytes a weight.
    Q4,
}

impl Precision {
    /// All of them, widest first.
    pub const ALL: [Self; 4] = [Self::F32, Self::F16, Self::Q8, Self::Q4];

    /// Elements to which a row is padded.
    pub fn row_multiple(self) -> usize {
        match self {
            Self::F32 | Self::F16 => 4,
            Self::Q8 | Self::Q4 => GROUP,
        }
    }

    /// Rows that `rows` rows take up: whole blocks, where there are blocks.
    pub fn stored_rows(self, rows: usize) -> usize {
        match self {
            Self::F32 | Self::F16 => rows,
            Self::Q8 | Self::Q4 => rows.next_multiple_of(BLOCK_ROWS),
        }
    }

    /// Length of a row of `columns` weights in fours, as kernels count it.
    pub fn row_fours(self, columns: usize) -> usize {
        columns.next_multiple_of(self.row_multiple()) / 4
    }

    /// Bytes of a row's weights.
    pub fn row_bytes(self, columns: usize) -> usize {
        let padded = columns.next_multiple_of(self.row_multiple());
        match self {
            Self::F32 => padded * 4,
            Self::F16 => padded * 2,
            Self::Q8 => padded,
            Self::Q4 => padded / 2,
        }
    }

    /// Bytes of a row's scales.
    pub fn row_scale_bytes(self, columns: usize) -> usize {
        let groups = columns.div_ceil(GROUP);
        match self {
            Self::F32 | Self::F16 => 0,
            Self::Q8 => groups * 2,
            Self::Q4 => groups * 4,
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Q8 => "q8",
            Self::Q4 => "q4",
        })
    }
}

impl FromStr for Precision {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|precision| precision.to_string() == text).ok_or_else(|| Error::Unsupported {
            what: "precision".to_owned(),
            found: text.to_owned(),
            supported: "f32, f16, q8, q4".to_owned(),
        })
    }
}

/// Packed rows, ready to be written to the device.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Packed {
    /// The weights.
    pub data: Vec<u8>,
    /// The scales; empty for f32 and f16.
    pub scales: Vec<u8>,
}

impl Packed {
    /// The same rows in blocks of [`BLOCK_ROWS`], the last filled up with zeros, where the format has blocks.
    #[must_use]
    pub fn to_blocks(&self, precision: Precision, columns: usize) -> Self {
        self.reordered(precision, columns, |index, groups| index % groups * BLOCK_ROWS + index / groups)
    }

    /// The rows of blocks, one after the other, those that fill up the last block included.
    #[must_use]
    pub fn from_blocks(&self, precision: Precision, columns: usize) -> Self {
        self.reordered(precision, columns, |index, groups| index % BLOCK_ROWS * groups + index / BLOCK_ROWS)
    }

    /// Moves the groups of every block: `place` says where group `index` of a block of rows of `groups` goes.
    fn reordered(&self, precision: Precision, columns: usize, place: impl Fn(usize, usize) -> usize) -> Self {
        if precision.stored_rows(1) == 1 {
            return self.clone();
        }
        let groups = columns.div_ceil(GROUP);
        let block = groups * BLOCK_ROWS;
        let reorder = |from: &[u8], row_bytes: usize| {
            let chunk = row_bytes / groups;
            let mut to = vec![0; from.len().next_multiple_of(block * chunk)];
            for (index, bytes) in from.chunks_exact(chunk).enumerate() {
                let at = (index / block * block + place(index % block, groups)) * chunk;
                to[at..at + chunk].copy_from_slice(bytes);
            }
            to
        };
        Self {
            data: reorder(&self.data, precision.row_bytes(columns)),
            scales: reorder(&self.scales, precision.row_scale_bytes(columns)),
        }
    }

    /// Rows in it.
    fn rows(&self, precision: Precision, columns: usize) -> usize {
        self.data.len() / precision.row_bytes(columns)
    }

    /// Takes the first rows out.
    pub(super) fn take_rows(&mut self, precision: Precision, columns: usize, rows: usize) -> Self {
        let rows = rows.min(self.rows(precision, columns));
        Self {
            data: self.data.drain(..rows * precision.row_bytes(columns)).collect(),
            scales: self.scales.drain(..rows * precision.row_scale_bytes(columns)).collect(),
        }
    }

    /// Adds rows at the end.
    pub(super) fn extend(&mut self, rows: &Self) {
        self.data.extend_from_slice(&rows.data);
        self.scales.extend_from_slice(&rows.scales);
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
            Precision::Q8 => row.chunks(GROUP).for_each(|group| pack_q8(group, &mut packed)),
            Precision::Q4 => row.chunks(GROUP).for_each(|group| pack_q4(group, &mut packed)),
        }
    }
    packed
}

/// f16 without infinities: a finite weight stays finite.
fn saturating_f16(value: f32) -> f16 {
    f16::from_f32(value.clamp(-65504.0, 65504.0))
}

/// As GGUF's `Q8_0`: scale = largest magnitude / 127; q is rounded with the scale before it is itself rounded to f16.
fn pack_q8(group: &[f32], packed: &mut Packed) {
    let largest = group.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    let scale = largest / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    packed.scales.extend_from_slice(&saturating_f16(scale).to_le_bytes());
    packed.data.extend(group.iter().map(|value| (value * inverse).round() as i8 as u8));
    packed.data.resize(packed.data.len() + GROUP - group.len(), 0);
}

/// As GGUF's `Q4_1`: minimum and scale = range / 15, both rounded to f16 after q is taken with the exact ones.
fn pack_q4(group: &[f32], packed: &mut Packed) {
    let minimum = group.iter().copied().fold(f32::INFINITY, f32::min);
    let maximum = group.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let scale = (maximum - minimum) / 15.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    packed.scales.extend_from_slice(&saturating_f16(scale).to_le_bytes());
    packed.scales.extend_from_slice(&saturating_f16(minimum).to_le_bytes());
    let mut nibbles = [0u8; GROUP];
    for (nibble, value) in nibbles.iter_mut().zip(group) {
        *nibble = ((value - minimum) * inverse + 0.5).clamp(0.0, 15.0) as u8;
    }
    packed.data.extend(nibbles.chunks_exact(2).map(|pair| pair[0] | pair[1] << 4));
}

/// The weights that packed rows, one after the other, stand for: what kernels compute with, up to rounding.
pub fn dequantise(precision: Precision, columns: usize, packed: &Packed) -> Vec<f32> {
    let row_bytes = precision.row_bytes(columns);
    let half = |bytes: &[u8], index: usize| f16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]]).to_f32();
    let groups = columns.div_ceil(GROUP);
    let mut values = Vec::with_capacity(packed.data.len() / row_bytes * columns);
    for (row, data) in packed.data.chunks_exact(row_bytes).enumerate() {
        for column in 0..columns {
            let group = row * groups + column / GROUP;
            values.push(match precision {
                Precision::F32 => bytemuck::pod_read_unaligned(&data[column * 4..column * 4 + 4]),
                Precision::F16 => half(data, column),
                Precision::Q8 => half(&packed.scales, group) * f32::from(data[column] as i8),
                Precision::Q4 => {
                    let nibble = data[column / 2] >> (4 * (column % 2)) & 15;
                    half(&packed.scales, 2 * group + 1) + half(&packed.scales, 2 * group) * f32::from(nibble)
                }
            });
        }
    }
    values
}
