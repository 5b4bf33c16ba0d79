//! Element types of checkpoint files, and their conversion to `f32`.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::blocks::BlockType;
use crate::parallel;
use crate::tensor::Precision;

/// Values that a thread decodes at a time.
const CHUNK_VALUES: usize = 1 << 16;

/// An element type of a checkpoint, little-endian unless the file declares otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Dtype {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
    F8E4M3,
    F8E5M2,
    F8E8M0,
    /// Quantised blocks of GGUF files.
    Block(BlockType),
}

/// Types of safetensors files.
const SAFETENSORS: [(Dtype, safetensors::Dtype); 16] = [
    (Dtype::F64, safetensors::Dtype::F64),
    (Dtype::F32, safetensors::Dtype::F32),
    (Dtype::F16, safetensors::Dtype::F16),
    (Dtype::Bf16, safetensors::Dtype::BF16),
    (Dtype::I64, safetensors::Dtype::I64),
    (Dtype::I32, safetensors::Dtype::I32),
    (Dtype::I16, safetensors::Dtype::I16),
    (Dtype::I8, safetensors::Dtype::I8),
    (Dtype::U64, safetensors::Dtype::U64),
    (Dtype::U32, safetensors::Dtype::U32),
    (Dtype::U16, safetensors::Dtype::U16),
    (Dtype::U8, safetensors::Dtype::U8),
    (Dtype::Bool, safetensors::Dtype::BOOL),
    (Dtype::F8E4M3, safetensors::Dtype::F8_E4M3),
    (Dtype::F8E5M2, safetensors::Dtype::F8_E5M2),
    (Dtype::F8E8M0, safetensors::Dtype::F8_E8M0),
];

/// The types that [`decode_f32`] decodes, for messages.
pub const FLOAT_TYPES: &str = "F64, F32, F16, BF16, F8_E4M3 or F8_E5M2";

impl Dtype {
    /// Elements of a storage unit and its bytes: one element, except for blocks.
    pub fn unit(self) -> (usize, usize) {
        let size = match self {
            Self::F64 | Self::I64 | Self::U64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 | Self::U16 => 2,
            Self::I8 | Self::U8 | Self::Bool | Self::F8E4M3 | Self::F8E5M2 | Self::F8E8M0 => 1,
            Self::Block(kind) => return (kind.block_len(), kind.block_bytes()),
        };
        (1, size)
    }

    /// Bytes of `elements` elements, in whole units; `None` if more than 2^64.
    pub fn bytes(self, elements: u64) -> Option<u64> {
        let (length, bytes) = self.unit();
        elements.div_ceil(length as u64).checked_mul(bytes as u64)
    }

    /// Whether [`decode_f32`] decodes it.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::Bf16 | Self::F8E8M0 | Self::Block(_)) || self.is_f8()
    }

    /// Whether it is one of the 8-bit floats with a mantissa. f16 holds all their values.
    pub fn is_f8(self) -> bool {
        matches!(self, Self::F8E4M3 | Self::F8E5M2)
    }

    /// The value of one element, little-endian; `None` if the type is not an integer.
    pub fn integer(self, bytes: &[u8]) -> Option<i128> {
        let unsigned = bytes.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        Some(match self {
            Self::I64 => i128::from(unsigned as i64),
            Self::I32 => i128::from(unsigned as i32),
            Self::I16 => i128::from(unsigned as i16),
            Self::I8 => i128::from(unsigned as i8),
            Self::U64 | Self::U32 | Self::U16 | Self::U8 | Self::Bool => i128::from(unsigned),
            _ => return None,
        })
    }

    /// The lossless precision on the device of a matrix with this type.
    pub fn precision(self) -> Precision {
        match self {
            Self::Block(kind) => kind.precision(),
            Self::F16 | Self::F8E4M3 | Self::F8E5M2 => Precision::F16,
            // bf16 has a larger range than f16.
            _ => Precision::F32,
        }
    }

    /// The name in safetensors files and in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::I64 => "I64",
            Self::I32 => "I32",
            Self::I16 => "I16",
            Self::I8 => "I8",
            Self::U64 => "U64",
            Self::U32 => "U32",
            Self::U16 => "U16",
            Self::U8 => "U8",
            Self::Bool => "BOOL",
            Self::F8E4M3 => "F8_E4M3",
            Self::F8E5M2 => "F8_E5M2",
            Self::F8E8M0 => "F8_E8M0",
            Self::Block(kind) => kind.name(),
        }
    }

    /// The type with this [`Self::name`] in safetensors headers.
    pub fn from_name(name: &str) -> Option<Self> {
        SAFETENSORS.into_iter().map(|(dtype, _)| dtype).find(|dtype| dtype.name() == name)
    }

    /// The type of the `safetensors` crate as this one.
    pub fn from_safetensors(dtype: safetensors::Dtype) -> Option<Self> {
        SAFETENSORS.into_iter().find(|(_, theirs)| *theirs == dtype).map(|(dtype, _)| dtype)
    }

    /// This type in a safetensors header; `None` for block types.
    pub fn to_safetensors(self) -> Option<safetensors::Dtype> {
        SAFETENSORS.into_iter().find(|(dtype, _)| *dtype == self).map(|(_, theirs)| theirs)
    }

    /// The element type of a torch storage class, for example `FloatStorage`.
    pub fn from_torch_storage(class: &str) -> Option<Self> {
        Some(match class {
            "DoubleStorage" => Self::F64,
            "FloatStorage" => Self::F32,
            "HalfStorage" => Self::F16,
            "BFloat16Storage" => Self::Bf16,
            "LongStorage" => Self::I64,
            "IntStorage" => Self::I32,
            "ShortStorage" => Self::I16,
            "CharStorage" => Self::I8,
            "ByteStorage" => Self::U8,
            "BoolStorage" => Self::Bool,
            _ => return None,
        })
    }
}

/// Appends the elements in `bytes` (little-endian; a partial last element is ignored) to `values`. `F64` is rounded.
///
/// Returns false, and appends nothing, if `dtype` is not one of [`FLOAT_TYPES`] or a block type.
#[must_use]
pub fn decode_f32(dtype: Dtype, bytes: &[u8], values: &mut Vec<f32>) -> bool {
    if !dtype.is_float() {
        return false;
    }
    let (length, size) = dtype.unit();
    let start = values.len();
    values.resize(start + bytes.len() / size * length, 0.0);
    let parts = values[start..].chunks_mut(CHUNK_VALUES).zip(bytes.chunks(CHUNK_VALUES / length * size));
    parallel::for_each(parts, |(values, bytes)| match dtype {
        Dtype::F64 => convert(bytes, values, |bytes| f64::from_le_bytes(bytes) as f32),
        Dtype::F32 => convert(bytes, values, f32::from_le_bytes),
        Dtype::Bf16 => {
            convert(bytes, values, |bytes| f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16));
        }
        Dtype::F16 => decode_f16(bytes, values),
        Dtype::F8E4M3 => convert(bytes, values, |[byte]| f8_e4m3(byte)),
        // The high byte of an f16.
        Dtype::F8E5M2 => convert(bytes, values, |[byte]| f16::from_le_bytes([0, byte]).to_f32()),
        // An exponent with bias 127, which is that of f32; 2^-127 is subnormal there. All ones are NaN.
        Dtype::F8E8M0 => convert(bytes, values, |[byte]| match byte {
            0 => f32::from_bits(1 << 22),
            u8::MAX => f32::NAN,
            exponent => f32::from_bits(u32::from(exponent) << 23),
        }),
        Dtype::Block(kind) => kind.dequantize(bytes, values),
        // The types that are not floats.
        _ => {}
    });
    true
}

/// torch's `float8_e4m3fn`: 4 bits of exponent with bias 7, 3 bits of mantissa, no infinities; all ones are NaN.
fn f8_e4m3(byte: u8) -> f32 {
    if byte & 0x7f == 0x7f {
        return f32::NAN;
    }
    // As an f16, whose exponent has bias 15: 2^8 times smaller, subnormals included.
    let sign = u16::from(byte & 0x80) << 8;
    f16::from_bits(sign | u16::from(byte & 0x7f) << 7).to_f32() * 256.0
}

/// Converts aligned blocks, so that `half` can use the processor's conversion instructions.
fn decode_f16(bytes: &[u8], values: &mut [f32]) {
    const BLOCK: usize = 1024;
    let mut halves = [f16::ZERO; BLOCK];
    for (bytes, values) in bytes.chunks(2 * BLOCK).zip(values.chunks_mut(BLOCK)) {
        let halves = &mut halves[..values.len()];
        for (half, bytes) in halves.iter_mut().zip(bytes.as_chunks().0) {
            *half = f16::from_le_bytes(*bytes);
        }
        halves.convert_to_f32_slice(values);
    }
}

fn convert<const N: usize>(bytes: &[u8], values: &mut [f32], convert: impl Fn([u8; N]) -> f32) {
    for (value, bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
        *value = convert(*bytes);
    }
}

/// Index of the first NaN or infinity.
pub fn first_non_finite(values: &[f32]) -> Option<usize> {
    first_larger(values, f32::MAX)
}

/// Index of the first NaN or value of a magnitude above `largest`.
pub(crate) fn first_larger(values: &[f32], largest: f32) -> Option<usize> {
    // Scans whole blocks without an early exit, so that the loop vectorizes; searches only the first bad block.
    const BLOCK: usize = 256;
    // The negation, so that NaN counts.
    #[allow(clippy::neg_cmp_op_on_partial_ord)]
    let bad = |value: &f32| !(value.abs() <= largest);
    let block = values.chunks(BLOCK).position(|block| block.iter().fold(false, |any, value| any | bad(value)))?;
    let start = block * BLOCK;
    values.get(start..)?.iter().position(bad).map(|index| start + index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
        let mut values = Vec::new();
        assert!(decode_f32(dtype, bytes, &mut values));
        values
    }

    #[test]
    fn floats_of_every_type_decode() {
        // Bit patterns from IEEE 754: 1.5, -2, the smallest subnormal (or a small normal).
        assert_eq!(decode(Dtype::F32, &[0, 0, 0xc0, 0x3f, 0, 0, 0, 0xc0]), [1.5, -2.0]);
        assert_eq!(decode(Dtype::F16, &[0x00, 0x3e, 0x00, 0xc0, 0x01, 0x00]), [1.5, -2.0, 2f32.powi(-24)]);
        assert_eq!(
            decode(Dtype::Bf16, &[0xc0, 0x3f, 0x00, 0xc0, 0x01, 0x00]),
            [1.5, -2.0, 2f32.powi(-126) * 2f32.powi(-7)]
        );
        assert_eq!(decode(Dtype::F64, &[0, 0, 0, 0, 0, 0, 0xf8, 0x3f]), [1.5]);
    }

    #[test]
    fn every_half_decodes_like_its_scalar_at_any_alignment() {
        let mut bytes = vec![0xff];
        bytes.extend((0..=u16::MAX).flat_map(u16::to_le_bytes));
        let values = decode(Dtype::F16, &bytes[1..]);
        assert_eq!(values.len(), 65536);
        for (bits, value) in (0..=u16::MAX).zip(values) {
            let expected = f16::from_bits(bits).to_f64();
            assert!(f64::from(value) == expected || (value.is_nan() && expected.is_nan()), "{bits:#x}: {value}");
        }
    }

    /// All 256 values of each type, widened by torch (`tests/reference/make_float8.py`).
    #[test]
    fn every_8_bit_float_decodes_as_in_torch() {
        let text = include_str!("../../tests/data/float8.json");
        let table: std::collections::BTreeMap<String, Vec<Option<f64>>> = serde_json::from_str(text).unwrap();
        let bytes: Vec<u8> = (0..=u8::MAX).collect();
        for dtype in [Dtype::F8E4M3, Dtype::F8E5M2, Dtype::F8E8M0] {
            let values = decode(dtype, &bytes);
            assert_eq!((values.len(), table[dtype.name()].len()), (256, 256));
            for (byte, (value, expected)) in values.iter().zip(&table[dtype.name()]).enumerate() {
                // JSON has neither NaN nor infinities.
                let same = match expected {
                    Some(expected) => value.to_bits() == (*expected as f32).to_bits(),
                    None => !value.is_finite(),
                };
                assert!(same, "{} {byte:#04x}: {value}, expected {expected:?}", dtype.name());
            }
        }
    }

    #[test]
    fn integers_are_refused() {
        let mut values = Vec::new();
        assert!(!decode_f32(Dtype::I64, &[0; 8], &mut values));
        assert!(values.is_empty());
    }

    #[test]
    fn non_finite_values_are_found_by_index() {
        for length in [1, 255, 256, 257, 1000] {
            assert_eq!(first_non_finite(&vec![f32::MAX; length]), None);
            for index in [0, length / 2, length - 1] {
                for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    let mut values = vec![-1.0; length];
                    values[index] = value;
                    assert_eq!(first_non_finite(&values), Some(index));
                }
            }
        }
    }
}
