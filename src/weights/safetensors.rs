//! The header of a safetensors file.
//!
//! The format (<https://github.com/huggingface/safetensors#format>): eight bytes, the length of the header; the header,
//! a JSON object of `name: {dtype, shape, data_offsets}` with an optional `__metadata__`; the data.
//!
//! The `safetensors` crate parses and checks the header. This module adds what the crate does not have: a limit on the
//! header's length before it is allocated, the tensor's name in every error, and offsets beyond 4 GiB on 32-bit hosts
//! (browsers), where the crate's `usize` is too small.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use ::safetensors::tensor::{Metadata, TensorInfo as HeaderEntry};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use super::dtype::Dtype;
use super::stored_tensor::{StoredTensor, TensorInfo};
use crate::io::{ByteSource, read_range};
use crate::{Error, Result, json};

/// Largest header that is read: the limit of the `safetensors` crate.
pub const MAX_HEADER: u64 = 100_000_000;

/// Bytes before the header.
const PREFIX: u64 = 8;

/// The tensors in a file, in order of their data.
///
/// # Errors
/// [`Error::Malformed`] if the header is malformed, or if tensors overlap, leave holes, end after the file, or have a
/// size that does not match their shape and type.
pub async fn read_header(source: &dyn ByteSource) -> Result<Vec<StoredTensor>> {
    let prefix = read_range(source, 0, PREFIX, PREFIX).await?;
    let length = prefix.iter().rev().fold(0, |length, byte| length << 8 | u64::from(*byte));
    let malformed = |offset, reason| Error::Malformed { file: source.name().to_owned(), offset, reason };
    if length > MAX_HEADER {
        let reason =
            format!("the header claims {length} bytes, the limit is {MAX_HEADER}: is this a safetensors file?");
        return Err(malformed(0, reason));
    }
    let header = read_range(source, PREFIX, length, MAX_HEADER).await?;
    let (start, end) = (PREFIX + length, source.len());
    let tensors = match serde_json::from_slice::<Metadata>(&header) {
        Ok(metadata) if start.checked_add(metadata.data_len() as u64) == Some(end) => from_metadata(&metadata, start),
        // Walk the header to report which tensor is wrong, or to read one that only the crate's types refuse.
        _ => walk(&header, start, end),
    };
    tensors.map_err(|(offset, reason)| malformed(offset, reason))
}

/// The texts of the header's `__metadata__`; none if there are none, or if the file is not a safetensors file.
///
/// # Errors
/// [`Error::Io`].
pub(super) async fn read_metadata(source: &dyn ByteSource) -> Result<BTreeMap<String, String>> {
    #[derive(Deserialize)]
    struct OnlyMetadata {
        #[serde(rename = "__metadata__")]
        metadata: Option<BTreeMap<String, serde_json::Value>>,
    }
    let mut prefix = [0; PREFIX as usize];
    if source.len() >= PREFIX {
        source.read(0, &mut prefix).await?;
    }
    let length = u64::from_le_bytes(prefix);
    if length > MAX_HEADER || PREFIX + length > source.len() {
        return Ok(BTreeMap::new());
    }
    let header = read_range(source, PREFIX, length, MAX_HEADER).await?;
    let parse = |header: &[u8]| serde_json::from_slice::<OnlyMetadata>(header);
    let parsed = parse(&header).or_else(|_| parse(&json::strict(&header)));
    let metadata = parsed.ok().and_then(|header| header.metadata);
    let text = |(key, value): (String, serde_json::Value)| match value {
        serde_json::Value::String(text) => Some((key, text)),
        _ => None,
    };
    Ok(metadata.into_iter().flatten().filter_map(text).collect())
}

/// The header of a file with these tensors, whose data follow in this order.
///
/// # Errors
/// [`Error::Internal`] if sizes do not match shapes and types.
pub(super) fn write_header(tensors: Vec<(String, HeaderEntry)>) -> Result<Vec<u8>> {
    let internal = |error: &dyn fmt::Display| Error::Internal(format!("a safetensors header: {error}"));
    let metadata = Metadata::new(None, tensors).map_err(|error| internal(&error))?;
    let mut json = serde_json::to_vec(&metadata).map_err(|error| internal(&error))?;
    // The data starts at a multiple of 8, as in files of the crate.
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.extend(json);
    Ok(header)
}

/// A place in the file and what is wrong there.
type Problem = (u64, String);

fn from_metadata(metadata: &Metadata, data_start: u64) -> Result<Vec<StoredTensor>, Problem> {
    let mut tensors = Vec::new();
    for name in metadata.offset_keys() {
        let Some(HeaderEntry { dtype, shape, data_offsets }) = metadata.info(&name) else { continue };
        let offset = data_start + data_offsets.0 as u64;
        let Some(dtype) = Dtype::from_safetensors(*dtype) else {
            return Err((offset, format!("tensor {name} has the unsupported element type {dtype}")));
        };
        tensors.push(StoredTensor::new(name, TensorInfo { dtype, shape: shape.clone() }, offset));
    }
    Ok(tensors)
}

/// Reads the header tensor by tensor, in a file of `file_length` bytes whose data starts at `data_start`.
fn walk(header: &[u8], data_start: u64, file_length: u64) -> Result<Vec<StoredTensor>, Problem> {
    let parse = |header: &[u8]| serde_json::from_slice(header);
    // Python's NaN in the metadata.
    let parsed = parse(header).or_else(|_| parse(&json::strict(header)));
    let Header(mut entries) =
        parsed.map_err(|error| (PREFIX, format!("the header is not the JSON of a safetensors file: {error}")))?;
    entries.sort_by_key(|(_, entry)| entry.data_offsets);
    let mut tensors = Vec::with_capacity(entries.len());
    let mut position = 0u64;
    for (name, Entry { dtype, shape, data_offsets: (start, end) }) in entries {
        let place = data_start.saturating_add(start);
        let Some(dtype) = Dtype::from_name(&dtype) else {
            return Err((place, format!("tensor {name} has the unsupported element type {dtype:?}")));
        };
        if start != position || end < start {
            let problem = if start < position { "overlapping another" } else { "leaving a hole" };
            return Err((place, format!("tensor {name} claims bytes {start}..{end}, {problem} at byte {position}")));
        }
        let info = TensorInfo { dtype, shape };
        let found = end - start;
        if info.bytes() != Some(found) {
            let expected = info.bytes().map_or("more than 2^64 bytes".to_owned(), |bytes| format!("{bytes} bytes"));
            let (shape, dtype) = (info.shape, info.dtype.name());
            return Err((
                place,
                format!("tensor {name} has {found} bytes, its shape {shape:?} of {dtype} takes {expected}"),
            ));
        }
        tensors.push(StoredTensor::new(name, info, place));
        position = end;
    }
    match data_start.checked_add(position) {
        Some(end) if end == file_length => Ok(tensors),
        Some(end) if end < file_length => {
            Err((end, format!("{} bytes follow the last tensor, expected none", file_length - end)))
        }
        _ => Err((file_length, "the file ends before the last tensor does: is it truncated?".to_owned())),
    }
}

/// As the crate's `TensorInfo`, with offsets that have 64 bits on every host.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

/// A list rather than a map, to detect duplicate names.
struct Header(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut entries = Vec::new();
                let mut names = HashSet::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    if !names.insert(name.clone()) {
                        return Err(serde::de::Error::custom(format!("tensor {name} occurs twice")));
                    }
                    let entry = map.next_value()?;
                    entries.push((name, entry));
                }
                Ok(Header(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::MemorySource;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    fn read(bytes: Vec<u8>) -> Result<Vec<StoredTensor>> {
        pollster::block_on(read_header(&MemorySource::new("x.safetensors", bytes)))
    }

    #[test]
    fn files_of_the_library_are_read() {
        use ::safetensors::tensor::{Dtype as Theirs, TensorView};
        let data: Vec<u8> = (0..48).collect();
        let tensors = [
            ("b", TensorView::new(Theirs::F32, vec![2, 3], &data[..24]).unwrap()),
            ("a", TensorView::new(Theirs::BF16, vec![12], &data[24..]).unwrap()),
            ("empty", TensorView::new(Theirs::F16, vec![0, 7], &[]).unwrap()),
            ("scalar", TensorView::new(Theirs::I64, vec![], &data[..8]).unwrap()),
        ];
        let bytes = ::safetensors::serialize(tensors, None).unwrap();
        let read = read(bytes.clone()).unwrap();
        let theirs = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(read.len(), theirs.len());
        for tensor in read {
            let expected = theirs.tensor(&tensor.name).unwrap();
            assert_eq!(tensor.info.shape, expected.shape());
            let start = tensor.offset as usize;
            assert_eq!(&bytes[start..start + tensor.info.bytes().unwrap() as usize], expected.data());
        }
    }

    #[test]
    fn bad_files_are_refused_with_a_reason() {
        let good = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F16","shape":[1],"data_offsets":[8,10]}}"#;
        assert_eq!(read(file(good, 10)).unwrap().len(), 2);
        // Metadata as Python's json writes it.
        let odd = good.replacen('{', r#"{"__metadata__":{"loss":NaN,"epoch":Infinity,"n":3},"#, 1);
        assert_eq!(read(file(&odd, 10)).unwrap().len(), 2);
        let twice = odd.replace("\"b\"", "\"a\"");
        assert!(read(file(&twice, 10)).unwrap_err().to_string().contains("tensor a occurs twice"));
        let huge = usize::MAX;
        let cases = [
            (vec![], "truncated"),
            (vec![1, 2, 3], "truncated"),
            (vec![0xff; 100], "is this a safetensors file"),
            (file(good, 10)[..60].to_vec(), "truncated"),
            (file(good, 9), "truncated"),
            (file(good, 11), "1 bytes follow the last tensor"),
            (file("{", 0), "JSON"),
            (file("[]", 0), "JSON"),
            (file(&"[".repeat(100_000), 0), "JSON"),
            (file(r#"{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}"#, 8), "JSON"),
            (file(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{}}"#, 8), "tensor a occurs twice"),
            (file(r#"{"a":{"dtype":"Q9","shape":[2],"data_offsets":[0,8]}}"#, 8), "element type \"Q9\""),
            (file(r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#, 8), "shape [3] of F32 takes 12 bytes"),
            (file(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#, 8), "bytes 8..0"),
            (file(&good.replace("[8,10]", "[7,9]"), 9), "overlapping another at byte 8"),
            (file(&good.replace("[8,10]", "[9,11]"), 11), "leaving a hole at byte 8"),
            (
                file(&format!(r#"{{"a":{{"dtype":"F32","shape":[{huge},{huge}],"data_offsets":[0,8]}}}}"#), 8),
                "takes more than 2^64 bytes",
            ),
            (file(&format!(r#"{{"a":{{"dtype":"U8","shape":[{huge}],"data_offsets":[0,{huge}]}}}}"#), 8), "truncated"),
        ];
        for (bytes, reason) in cases {
            let error = read(bytes).unwrap_err().to_string();
            assert!(error.starts_with("x.safetensors") && error.contains(reason), "{error:?} lacks {reason:?}");
        }
    }
}
