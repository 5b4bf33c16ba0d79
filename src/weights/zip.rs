//! The entries of a zip archive as torch writes it: stored, not compressed.
//!
//! Not the `zip` crate: it reads through blocking `Read + Seek`, and the bytes here come from asynchronous ranges
//! (a browser's blobs). Tensors are read in place; nothing is decompressed, so there are no zip bombs, and entries must
//! not overlap. Format: <https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT>, sections 4.3.7 to 4.3.16 and
//! 4.5.3.

use std::collections::BTreeMap;

use futures_util::future::join_all;

use crate::io::{ByteSource, read_range};
use crate::{Error, Result};

/// Largest central directory that is read: about half a million entries.
const MAX_DIRECTORY: u64 = 64 << 20;

const LOCAL_HEADER: u64 = 30;
/// Reads of local headers at a time.
const PARALLEL_READS: usize = 16;
const DIRECTORY_HEADER: usize = 46;
const END_OF_DIRECTORY: u64 = 22;
const END_LOCATOR: u64 = 20;
const END_OF_DIRECTORY_64: u64 = 56;

/// A stored entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Offset of its bytes from the start of the file.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
}

/// The entries of an archive by name.
///
/// # Errors
/// [`Error::Malformed`] if this is not a zip archive, if an entry is compressed or encrypted, if entries overlap or end
/// outside the file, or if a name occurs twice.
pub async fn read_entries(source: &dyn ByteSource) -> Result<BTreeMap<String, Entry>> {
    let malformed = |offset, reason| Error::Malformed { file: source.name().to_owned(), offset, reason };
    let (directory_start, directory_length) = find_directory(source).await?;
    let directory = read_range(source, directory_start, directory_length, MAX_DIRECTORY).await?;

    let mut records = Vec::new();
    let mut rest = directory.as_slice();
    while !rest.is_empty() {
        let offset = directory_start + (directory.len() - rest.len()) as u64;
        let (record, after) = parse_record(rest).map_err(|reason| malformed(offset, reason))?;
        records.push(record);
        rest = after;
    }
    records.sort_by_key(|record| record.header);

    // An archive has a header for each tensor. Over a network each read takes a round trip.
    let mut locals = Vec::with_capacity(records.len());
    for some in records.chunks(PARALLEL_READS) {
        let reads = some.iter().map(|record| read_range(source, record.header, LOCAL_HEADER, LOCAL_HEADER));
        locals.extend(join_all(reads).await);
    }

    let mut entries = BTreeMap::new();
    let mut free = 0;
    for (Record { name, header, length }, local) in records.into_iter().zip(locals) {
        let outside = |offset| malformed(offset, format!("entry {name} overlaps another or ends outside the file"));
        if header < free {
            return Err(outside(header));
        }
        let local = local?;
        let mut fields = Fields(&local);
        if fields.u32() != Some(0x0403_4b50) {
            return Err(malformed(header, format!("entry {name} has no local header here")));
        }
        let lengths = fields.skip(22).and_then(|()| Some(u64::from(fields.u16()?) + u64::from(fields.u16()?)));
        let offset = lengths.and_then(|lengths| header.checked_add(LOCAL_HEADER + lengths));
        let end = offset.and_then(|offset| offset.checked_add(length));
        match (offset, end) {
            (Some(offset), Some(end)) if end <= directory_start => {
                free = end;
                if entries.insert(name.clone(), Entry { offset, length }).is_some() {
                    return Err(malformed(header, format!("entry {name} occurs twice")));
                }
            }
            _ => return Err(outside(header)),
        }
    }
    Ok(entries)
}

/// Offset and length of the central directory.
async fn find_directory(source: &dyn ByteSource) -> Result<(u64, u64)> {
    let malformed =
        |offset, reason: &str| Error::Malformed { file: source.name().to_owned(), offset, reason: reason.to_owned() };
    // The end record is at the end of the file, before a comment of at most 64 KiB.
    let tail_length = source.len().min(END_OF_DIRECTORY + u64::from(u16::MAX));
    let tail_start = source.len() - tail_length;
    let tail = read_range(source, tail_start, tail_length, tail_length).await?;
    let found = (0..tail.len()).rev().find_map(|at| {
        let record = tail.get(at..)?;
        let mut fields = Fields(record);
        (fields.u32()? == 0x0605_4b50).then_some(())?;
        fields.skip(6)?;
        let entries = fields.u16()?;
        let (length, start) = (fields.u32()?, fields.u32()?);
        let comment = fields.u16()?;
        (fields.0.len() == usize::from(comment)).then_some((tail_start + at as u64, entries, length, start))
    });
    let Some((end, entries, length, start)) = found else {
        return Err(malformed(tail_start, "no end of a zip archive found: is the file truncated?"));
    };
    let (mut limit, mut start, mut length) = (end, u64::from(start), u64::from(length));
    if start == u64::from(u32::MAX) || length == u64::from(u32::MAX) || entries == u16::MAX {
        let bad = || malformed(end, "the zip64 end of the archive is missing or damaged");
        let locator_at = end.checked_sub(END_LOCATOR).ok_or_else(bad)?;
        let locator = read_range(source, locator_at, END_LOCATOR, END_LOCATOR).await?;
        let mut fields = Fields(&locator);
        let record_at = (fields.u32() == Some(0x0706_4b50)).then(|| fields.skip(4)).flatten();
        let record_at = record_at.and_then(|()| fields.u64()).filter(|at| *at < locator_at).ok_or_else(bad)?;
        let record = read_range(source, record_at, END_OF_DIRECTORY_64, END_OF_DIRECTORY_64).await?;
        let mut fields = Fields(&record);
        let sizes = (fields.u32() == Some(0x0606_4b50)).then(|| fields.skip(36)).flatten();
        (length, start) = sizes.and_then(|()| Some((fields.u64()?, fields.u64()?))).ok_or_else(bad)?;
        limit = record_at;
    }
    if start.checked_add(length).is_none_or(|directory_end| directory_end > limit) {
        return Err(malformed(end, "the zip archive's directory lies outside the file"));
    }
    Ok((start, length))
}

/// An entry of the directory.
struct Record {
    name: String,
    /// Offset of its local header.
    header: u64,
    length: u64,
}

/// Reads one record; returns it and the bytes after it.
fn parse_record(bytes: &[u8]) -> Result<(Record, &[u8]), String> {
    let parse = || {
        let mut fields = Fields(bytes);
        let signature = fields.u32()?;
        fields.skip(4)?;
        let (flags, method) = (fields.u16()?, fields.u16()?);
        fields.skip(8)?;
        let (packed, length) = (fields.u32()?, fields.u32()?);
        let (name, extra, comment) = (fields.u16()?, fields.u16()?, fields.u16()?);
        fields.skip(8)?;
        let header = fields.u32()?;
        debug_assert_eq!(bytes.len() - fields.0.len(), DIRECTORY_HEADER);
        let name = fields.take(usize::from(name))?;
        let extra = fields.take(usize::from(extra))?;
        fields.skip(usize::from(comment))?;
        (signature == 0x0201_4b50).then_some((flags, method, packed, length, header, name, extra, fields.0))
    };
    let Some((flags, method, packed, length, header, name, extra, rest)) = parse() else {
        return Err("the zip archive's directory is damaged".to_owned());
    };
    let name = String::from_utf8(name.to_vec()).map_err(|_| "an entry's name is not UTF-8".to_owned())?;
    if method != 0 {
        return Err(format!(
            "entry {name} is compressed (method {method}); torch stores its entries uncompressed and nothing else is read"
        ));
    }
    if flags & 1 != 0 {
        return Err(format!("entry {name} is encrypted"));
    }
    let wide = |value: u32| (value != u32::MAX).then_some(u64::from(value));
    let mut zip64 = Fields(zip64_field(extra).unwrap_or_default());
    // The order is the standard's; a field is there only if its narrow form is all ones.
    let length = wide(length).or_else(|| zip64.u64());
    let packed = wide(packed).or_else(|| zip64.u64());
    let header = wide(header).or_else(|| zip64.u64());
    match (length, packed, header) {
        (Some(length), Some(packed), Some(header)) if length == packed => Ok((Record { name, header, length }, rest)),
        _ => Err(format!("the sizes of entry {name} contradict each other")),
    }
}

/// The contents of the zip64 field among an entry's extra fields.
fn zip64_field(extra: &[u8]) -> Option<&[u8]> {
    let mut fields = Fields(extra);
    loop {
        let (id, length) = (fields.u16()?, fields.u16()?);
        let field = fields.take(usize::from(length))?;
        if id == 1 {
            return Some(field);
        }
    }
}

/// Little-endian fields from the front of a slice; `None` where it ends.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn skip(&mut self, length: usize) -> Option<()> {
        self.take(length).map(drop)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::io::MemorySource;

    fn local_header(name: &str, method: u16, length: usize) -> Vec<u8> {
        let mut bytes = b"PK\x03\x04\0\0\0\0".to_vec();
        bytes.extend(method.to_le_bytes());
        bytes.extend([0; 8]);
        bytes.extend((length as u32).to_le_bytes());
        bytes.extend((length as u32).to_le_bytes());
        bytes.extend((name.len() as u16).to_le_bytes());
        bytes.extend([0; 2]);
        bytes.extend(name.as_bytes());
        bytes
    }

    fn directory_record(name: &str, method: u16, length: usize, header: usize) -> Vec<u8> {
        let mut bytes = b"PK\x01\x02\0\0\0\0\0\0".to_vec();
        bytes.extend(method.to_le_bytes());
        bytes.extend([0; 8]);
        bytes.extend((length as u32).to_le_bytes());
        bytes.extend((length as u32).to_le_bytes());
        bytes.extend((name.len() as u16).to_le_bytes());
        bytes.extend([0; 12]);
        bytes.extend((header as u32).to_le_bytes());
        bytes.extend(name.as_bytes());
        bytes
    }

    fn end_record(entries: usize, length: usize, start: usize) -> Vec<u8> {
        let mut bytes = b"PK\x05\x06\0\0\0\0".to_vec();
        bytes.extend([entries as u16; 2].iter().flat_map(|count| count.to_le_bytes()));
        bytes.extend((length as u32).to_le_bytes());
        bytes.extend((start as u32).to_le_bytes());
        bytes.extend([0; 2]);
        bytes
    }

    /// An archive of stored entries, as a test of another module wants it.
    pub(in super::super) fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let (mut bytes, mut directory) = (Vec::new(), Vec::new());
        for (name, data) in entries {
            directory.extend(directory_record(name, 0, data.len(), bytes.len()));
            bytes.extend(local_header(name, 0, data.len()));
            bytes.extend(*data);
        }
        let start = bytes.len();
        bytes.extend(&directory);
        bytes.extend(end_record(entries.len(), directory.len(), start));
        bytes
    }

    fn read(bytes: Vec<u8>) -> Result<BTreeMap<String, Entry>> {
        pollster::block_on(read_entries(&MemorySource::new("x.bin", bytes)))
    }

    #[test]
    fn stored_entries_are_found() {
        let entries = read(archive(&[("a/data.pkl", b"hello"), ("a/data/0", b""), ("é", b"world")])).unwrap();
        assert_eq!(entries.len(), 3);
        assert_eq!(entries["a/data.pkl"], Entry { offset: 40, length: 5 });
        assert_eq!(read(archive(&[])).unwrap().len(), 0);
    }

    #[test]
    fn zip64_sizes_and_offsets_are_read() {
        // One entry whose 32-bit fields are all ones, and a zip64 end of directory.
        let mut bytes = local_header("big", 0, 0xffff_ffff);
        bytes.extend(b"abcdef");
        let start = bytes.len();
        let mut record = directory_record("big", 0, 0xffff_ffff, 0xffff_ffff);
        record[30] = 28;
        record.extend([1, 0, 24, 0]);
        record.extend([6u64, 6, 0].iter().flat_map(|value| value.to_le_bytes()));
        bytes.extend(&record);
        let end = bytes.len();
        bytes.extend(b"PK\x06\x06");
        bytes.extend([0; 36]);
        bytes.extend((record.len() as u64).to_le_bytes());
        bytes.extend((start as u64).to_le_bytes());
        bytes.extend(b"PK\x06\x07\0\0\0\0");
        bytes.extend((end as u64).to_le_bytes());
        bytes.extend([1, 0, 0, 0]);
        bytes.extend(end_record(0xffff, 0xffff_ffff, 0xffff_ffff));
        assert_eq!(read(bytes.clone()).unwrap()["big"], Entry { offset: 33, length: 6 });
        bytes[start + 46 + 3 + 4] = 7; // longer than the bytes there
        assert!(read(bytes).is_err());
    }

    #[test]
    fn bad_archives_are_refused_with_a_reason() {
        let bomb = {
            let mut bytes = local_header("a/data/0", 8, 10);
            bytes.extend([0; 10]);
            let directory = directory_record("a/data/0", 8, 10, 0);
            let start = bytes.len();
            bytes.extend(&directory);
            bytes.extend(end_record(1, directory.len(), start));
            bytes
        };
        let two = |second: usize| {
            let mut bytes = local_header("a", 0, 4);
            bytes.extend([0; 4]);
            let mut directory = directory_record("a", 0, 4, 0);
            directory.extend(directory_record("b", 0, 4, second));
            let start = bytes.len();
            bytes.extend(&directory);
            bytes.extend(end_record(2, directory.len(), start));
            bytes
        };
        let good = archive(&[("a", b"1234")]);
        let cases = [
            (vec![], "truncated"),
            (b"not a zip".to_vec(), "truncated"),
            (good[..good.len() - 1].to_vec(), "truncated"),
            (good[1..].to_vec(), ""),
            (bomb, "entry a/data/0 is compressed (method 8)"),
            (two(0), "entry b overlaps another"),
            (two(5), "entry b overlaps another"),
            (two(1 << 30), "truncated"),
            (archive(&[("a", b"1"), ("a", b"2")]), "entry a occurs twice"),
            (end_record(1, 1 << 30, 1 << 30), "outside the file"),
            (end_record(0xffff, 0xffff_ffff, 0xffff_ffff), "zip64"),
        ];
        for (bytes, reason) in cases {
            let error = read(bytes).unwrap_err().to_string();
            assert!(error.starts_with("x.bin") && error.contains(reason), "{error:?} lacks {reason:?}");
        }
    }
}
