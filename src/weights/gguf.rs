//! The header of a GGUF file: metadata and the offsets of tensors.
//!
//! The format (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>), versions 2 and 3, little-endian: magic,
//! version, counts, key/value pairs, tensor descriptions, then the data at multiples of an alignment.
//!
//! Own reader: the GGUF crates read from blocking streams and do not bound allocations by the file's size.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::blocks::BlockType;
use super::dtype::Dtype;
use super::stored_tensor::{StoredTensor, TensorInfo};
use crate::io::{ByteSource, read_range, refuse_lfs_pointer};
use crate::{Error, Result};

/// The first bytes of every GGUF file.
pub const MAGIC: &[u8; 4] = b"GGUF";

/// Largest header that is read. With a tokenizer, headers have some tens of megabytes.
const MAX_HEADER: u64 = 256 << 20;
/// Size of the first read of a header; it doubles until the header is complete.
const FIRST_READ: u64 = 1 << 20;
const MAX_DIMENSIONS: usize = 4;
/// Most levels of nested arrays.
const MAX_NESTING: usize = 4;

/// Most elements of all arrays together. Vocabularies and merges have some hundred thousand.
const MAX_ELEMENTS: usize = 1 << 22;

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Any integer type.
    Integer(i128),
    /// f32 or f64.
    Float(f64),
    /// A boolean.
    Bool(bool),
    /// UTF-8; invalid bytes are replaced.
    Text(String),
    /// Elements of one type.
    Array(Array),
}

/// An array of the metadata, stored compactly: vocabularies have hundreds of thousands of elements.
#[derive(Debug, Clone, PartialEq)]
pub enum Array {
    /// Any integer type.
    Integers(Vec<i64>),
    /// f32, or f64 rounded to f32.
    Floats(Vec<f32>),
    /// Texts.
    Texts(Texts),
    /// Booleans.
    Bools(Vec<bool>),
    /// Arrays, which are skipped.
    Other,
}

/// Texts, concatenated in one buffer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Texts {
    all: String,
    ends: Vec<u32>,
}

impl Texts {
    /// Number of texts.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are no texts.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The text at `index`.
    pub fn get(&self, index: usize) -> Option<&str> {
        let end = *self.ends.get(index)? as usize;
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        self.all.get(start..end)
    }

    fn push(&mut self, text: &str) {
        self.all.push_str(text);
        // A header has less than 4 GiB.
        self.ends.push(self.all.len() as u32);
    }

    /// All texts, in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        (0..self.len()).filter_map(|index| self.get(index))
    }
}

impl<'a> FromIterator<&'a str> for Texts {
    fn from_iter<I: IntoIterator<Item = &'a str>>(texts: I) -> Self {
        let mut found = Self::default();
        texts.into_iter().for_each(|text| found.push(text));
        found
    }
}

/// The header of a GGUF file.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    /// The file's name, for messages.
    pub file: String,
    /// Key/value pairs.
    pub metadata: BTreeMap<String, Value>,
    /// The tensors under their names in the file, rows first: [rows, columns], [experts, rows, columns].
    pub tensors: Vec<StoredTensor>,
}

impl Header {
    /// Reads the header.
    ///
    /// # Errors
    /// [`Error::Malformed`] with the offset of the fault; [`Error::Unsupported`] for unsupported tensor types;
    /// [`Error::Io`].
    pub async fn read(source: &dyn ByteSource) -> Result<Self> {
        refuse_lfs_pointer(source).await?;
        let mut length = FIRST_READ.min(source.len());
        loop {
            let bytes = read_range(source, 0, length, MAX_HEADER).await?;
            match parse(source.name(), &bytes, source.len()) {
                Err(Problem::NeedsMore) if length < source.len().min(MAX_HEADER) => {
                    length = (length * 4).min(source.len()).min(MAX_HEADER);
                }
                Err(problem) => return Err(problem.into_error(source.name(), length)),
                Ok(header) => return Ok(header),
            }
        }
    }

    /// A text of the metadata.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.metadata.get(key) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// An integer of the metadata, if it fits.
    pub fn integer<T: TryFrom<i128>>(&self, key: &str) -> Option<T> {
        match self.metadata.get(key) {
            Some(Value::Integer(value)) => T::try_from(*value).ok(),
            _ => None,
        }
    }

    /// A number of the metadata.
    pub fn number(&self, key: &str) -> Option<f64> {
        match self.metadata.get(key) {
            Some(Value::Float(value)) => Some(*value),
            Some(Value::Integer(value)) => Some(*value as f64),
            _ => None,
        }
    }

    /// A boolean of the metadata.
    pub fn flag(&self, key: &str) -> Option<bool> {
        match self.metadata.get(key) {
            Some(Value::Bool(value)) => Some(*value),
            _ => None,
        }
    }

    /// An array of the metadata.
    pub fn array(&self, key: &str) -> Option<&Array> {
        match self.metadata.get(key) {
            Some(Value::Array(values)) => Some(values),
            _ => None,
        }
    }

    /// An array of texts.
    pub fn texts(&self, key: &str) -> Option<&Texts> {
        match self.array(key)? {
            Array::Texts(texts) => Some(texts),
            _ => None,
        }
    }
}

enum Problem {
    /// The bytes read so far end too early.
    NeedsMore,
    /// The header is malformed at an offset.
    Malformed(u64, String),
    Failed(Error),
}

impl Problem {
    fn into_error(self, file: &str, length: u64) -> Error {
        let malformed = |offset, reason| Error::Malformed { file: file.to_owned(), offset, reason };
        match self {
            Self::NeedsMore => malformed(length, "the file ends inside its header: is it truncated?".to_owned()),
            Self::Malformed(offset, reason) => malformed(offset, reason),
            Self::Failed(error) => error,
        }
    }
}

type Parsed<T> = std::result::Result<T, Problem>;

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Elements of all arrays so far.
    elements: usize,
}

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Parsed<[u8; N]> {
        let end = self.at.checked_add(N).ok_or(Problem::NeedsMore)?;
        let mut taken = [0; N];
        taken.copy_from_slice(self.bytes.get(self.at..end).ok_or(Problem::NeedsMore)?);
        self.at = end;
        Ok(taken)
    }

    fn u32(&mut self) -> Parsed<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Parsed<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn fail<T>(&self, reason: String) -> Parsed<T> {
        Err(Problem::Malformed(self.at as u64, reason))
    }

    /// A count of items of at least `size` bytes each.
    fn count(&mut self, what: &str, size: u64) -> Parsed<usize> {
        let count = self.u64()?;
        if count.checked_mul(size).is_none_or(|bytes| bytes > MAX_HEADER) {
            return self.fail(format!("{count} {what}: more than a header can contain"));
        }
        Ok(count as usize)
    }

    fn text(&mut self) -> Parsed<Cow<'a, str>> {
        let length = self.count("bytes of text", 1)?;
        let end = self.at.checked_add(length).ok_or(Problem::NeedsMore)?;
        let bytes = self.bytes.get(self.at..end).ok_or(Problem::NeedsMore)?;
        self.at = end;
        Ok(String::from_utf8_lossy(bytes))
    }

    fn value(&mut self, kind: u32, nesting: usize) -> Parsed<Value> {
        Ok(match kind {
            0 => Value::Integer(u8::from_le_bytes(self.take()?).into()),
            1 => Value::Integer(i8::from_le_bytes(self.take()?).into()),
            2 => Value::Integer(u16::from_le_bytes(self.take()?).into()),
            3 => Value::Integer(i16::from_le_bytes(self.take()?).into()),
            4 => Value::Integer(self.u32()?.into()),
            5 => Value::Integer(i32::from_le_bytes(self.take()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.take()?).into()),
            7 => Value::Bool(u8::from_le_bytes(self.take()?) != 0),
            8 => Value::Text(self.text()?.into_owned()),
            9 if nesting < MAX_NESTING => Value::Array(self.array(nesting)?),
            10 => Value::Integer(self.u64()?.into()),
            11 => Value::Integer(i64::from_le_bytes(self.take()?).into()),
            12 => Value::Float(f64::from_le_bytes(self.take()?)),
            _ => return self.fail(format!("unknown type of value {kind}")),
        })
    }

    fn array(&mut self, nesting: usize) -> Parsed<Array> {
        let kind = self.u32()?;
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            _ => 8,
        };
        let count = self.count("elements of an array", size)?;
        // Allocate no more than the remaining bytes can contain.
        if (self.bytes.len() - self.at) as u64 / size < count as u64 {
            return Err(Problem::NeedsMore);
        }
        self.elements += count;
        if self.elements > MAX_ELEMENTS {
            return self.fail(format!("arrays of more than {MAX_ELEMENTS} elements in total"));
        }
        Ok(match kind {
            8 => {
                let mut texts = Texts { all: String::new(), ends: Vec::with_capacity(count) };
                for _ in 0..count {
                    texts.push(&self.text()?);
                }
                Array::Texts(texts)
            }
            0..=5 | 10 | 11 => {
                let mut values = Vec::with_capacity(count);
                for _ in 0..count {
                    let Value::Integer(value) = self.value(kind, nesting + 1)? else { continue };
                    // Only a u64 can be larger, and no value in use is.
                    values.push(i64::try_from(value).unwrap_or(i64::MAX));
                }
                Array::Integers(values)
            }
            6 | 12 => {
                let mut values = Vec::with_capacity(count);
                for _ in 0..count {
                    let Value::Float(value) = self.value(kind, nesting + 1)? else { continue };
                    values.push(value as f32);
                }
                Array::Floats(values)
            }
            7 => {
                let mut values = Vec::with_capacity(count);
                for _ in 0..count {
                    let Value::Bool(value) = self.value(kind, nesting + 1)? else { continue };
                    values.push(value);
                }
                Array::Bools(values)
            }
            _ => {
                for _ in 0..count {
                    self.value(kind, nesting + 1)?;
                }
                Array::Other
            }
        })
    }
}

fn parse(file: &str, bytes: &[u8], file_length: u64) -> Parsed<Header> {
    let mut reader = Reader { bytes, at: 0, elements: 0 };
    if reader.take()? != *MAGIC {
        return Err(Problem::Malformed(
            0,
            "the first four bytes are not \"GGUF\"; for any other checkpoint, pass its folder".to_owned(),
        ));
    }
    let version = reader.u32()?;
    if !(2..=3).contains(&version) {
        let reason = format!("GGUF version {version}, expected 2 or 3 (little-endian): convert the file again");
        return Err(Problem::Malformed(4, reason));
    }
    let tensor_count = reader.count("tensors", 24)?;
    let pair_count = reader.count("key/value pairs", 12)?;
    let mut metadata = BTreeMap::new();
    for _ in 0..pair_count {
        let key = reader.text()?.into_owned();
        let kind = reader.u32()?;
        let value = reader.value(kind, 0)?;
        metadata.insert(key, value);
    }
    let mut descriptions = Vec::new();
    for _ in 0..tensor_count {
        let name = reader.text()?.into_owned();
        let dimensions = reader.u32()? as usize;
        if dimensions > MAX_DIMENSIONS {
            return reader
                .fail(format!("tensor {name} has {dimensions} dimensions, expected at most {MAX_DIMENSIONS}"));
        }
        let mut shape = Vec::with_capacity(dimensions);
        for _ in 0..dimensions {
            let size = reader.u64()?;
            let Ok(size) = usize::try_from(size) else {
                return reader.fail(format!("tensor {name} has a dimension of {size}"));
            };
            shape.push(size);
        }
        // The fastest dimension comes first in the file.
        shape.reverse();
        let kind = reader.u32()?;
        let offset = reader.u64()?;
        let dtype = tensor_type(kind).ok_or_else(|| Problem::Failed(unknown_type(file, &name, kind)))?;
        descriptions.push((name, TensorInfo { dtype, shape }, offset));
    }
    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(Value::Integer(alignment @ 8..=65536)) if *alignment % 8 == 0 => *alignment as u64,
        Some(other) => return reader.fail(format!("general.alignment is {other:?}, expected a multiple of 8")),
    };
    let data = (reader.at as u64).next_multiple_of(alignment);
    let mut tensors = Vec::with_capacity(descriptions.len());
    for (name, info, offset) in descriptions {
        if let Dtype::Block(kind) = info.dtype {
            let row = info.shape.last().copied().unwrap_or(0);
            if !row.is_multiple_of(kind.block_len()) {
                let (kind, block) = (kind.name(), kind.block_len());
                return reader.fail(format!("tensor {name} has rows of {row}, {kind} has blocks of {block}"));
            }
        }
        let end = info.bytes().and_then(|bytes| data.checked_add(offset)?.checked_add(bytes));
        let inside = offset % alignment == 0 && end.is_some_and(|end| end <= file_length);
        if !inside {
            let reason = format!(
                "tensor {name} ({:?} of {}) at {offset} in the data reaches past the end of the file at {file_length}: is it \
                 truncated?",
                info.shape,
                info.dtype.name()
            );
            return Err(Problem::Malformed(data.saturating_add(offset), reason));
        }
        tensors.push(StoredTensor::new(name, info, data + offset));
    }
    Ok(Header { file: file.to_owned(), metadata, tensors })
}

/// ggml's numbers of types.
fn tensor_type(kind: u32) -> Option<Dtype> {
    Some(match kind {
        0 => Dtype::F32,
        1 => Dtype::F16,
        2 => Dtype::Block(BlockType::Q4_0),
        3 => Dtype::Block(BlockType::Q4_1),
        6 => Dtype::Block(BlockType::Q5_0),
        7 => Dtype::Block(BlockType::Q5_1),
        8 => Dtype::Block(BlockType::Q8_0),
        12 => Dtype::Block(BlockType::Q4K),
        13 => Dtype::Block(BlockType::Q5K),
        14 => Dtype::Block(BlockType::Q6K),
        24 => Dtype::I8,
        25 => Dtype::I16,
        26 => Dtype::I32,
        27 => Dtype::I64,
        28 => Dtype::F64,
        30 => Dtype::Bf16,
        _ => return None,
    })
}

fn unknown_type(file: &str, name: &str, kind: u32) -> Error {
    const NAMES: [(u32, &str); 21] = [
        (9, "Q8_1"),
        (10, "Q2_K"),
        (11, "Q3_K"),
        (15, "Q8_K"),
        (16, "IQ2_XXS"),
        (17, "IQ2_XS"),
        (18, "IQ3_XXS"),
        (19, "IQ1_S"),
        (20, "IQ4_NL"),
        (21, "IQ3_S"),
        (22, "IQ2_S"),
        (23, "IQ4_XS"),
        (29, "IQ1_M"),
        (31, "Q4_0_4_4"),
        (32, "Q4_0_4_8"),
        (33, "Q4_0_8_8"),
        (34, "TQ1_0"),
        (35, "TQ2_0"),
        (39, "MXFP4"),
        (40, "NVFP4"),
        (4, "Q4_2"),
    ];
    let known = NAMES.iter().find(|(number, _)| *number == kind).map(|(_, name)| *name);
    Error::Unsupported {
        what: format!("{file}: type of tensor {name}"),
        found: known.map_or_else(|| format!("number {kind}"), str::to_owned),
        supported:
            "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K; convert the original model to one of them \
             with llama.cpp's llama-quantize"
                .to_owned(),
    }
}
