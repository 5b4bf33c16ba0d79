//! The tensors of a torch file (`pytorch_model.bin`): a zip archive with a pickle, `ARCHIVE/data.pkl`, and one entry of
//! raw elements per storage, `ARCHIVE/data/KEY`.

use super::stored_tensor::{StoredTensor, TensorInfo};
use super::{pickle, zip};
use crate::io::{ByteSource, read_range};
use crate::{Error, Result};

/// The tensors of the state dict in a torch file. Nothing in the file is executed.
///
/// # Errors
/// [`Error::Unsupported`] for files in torch's format before version 1.6, and for tensors that are not contiguous;
/// [`Error::Malformed`] if the archive is malformed, if its pickle contains anything but tensors, or if a tensor ends
/// outside its storage.
pub async fn read_state_dict(source: &dyn ByteSource) -> Result<Vec<StoredTensor>> {
    let malformed = |offset, reason| Error::Malformed { file: source.name().to_owned(), offset, reason };
    let start = read_range(source, 0, source.len().min(2), 2).await?;
    if start != b"PK" {
        // A bare pickle starts with the PROTO opcode.
        return Err(if start.first() == Some(&0x80) {
            Error::Unsupported {
                what: format!("{}: torch's old file format", source.name()),
                found: "a bare pickle".to_owned(),
                supported: "zip archives, which torch.save writes since version 1.6, and safetensors: load the file \
                            with torch and save it again"
                    .to_owned(),
            }
        } else {
            let hint = "neither a torch archive (a zip file) nor a pickle: of a model in several files pass the folder";
            malformed(0, hint.to_owned())
        });
    }
    let entries = zip::read_entries(source).await?;
    let mut pickles = entries.iter().filter_map(|(name, entry)| Some((name.strip_suffix("/data.pkl")?, entry)));
    let (Some((archive, pickle)), None) = (pickles.next(), pickles.next()) else {
        return Err(malformed(0, "a torch archive has exactly one data.pkl, this has none or several".to_owned()));
    };
    let bytes = read_range(source, pickle.offset, pickle.length, pickle::MAX_LENGTH).await?;
    let tensors =
        pickle::read_state_dict(&bytes).map_err(|(at, reason)| malformed(pickle.offset.saturating_add(at), reason))?;
    let big_endian = match entries.get(&format!("{archive}/byteorder")) {
        None => false,
        Some(entry) => match read_range(source, entry.offset, entry.length, 16).await?.as_slice() {
            b"little" => false,
            b"big" => true,
            other => return Err(malformed(entry.offset, format!("byte order {:?}", String::from_utf8_lossy(other)))),
        },
    };
    let place = |tensor: pickle::PickledTensor| {
        let storage = format!("{archive}/data/{}", tensor.storage);
        let Some(entry) = entries.get(&storage) else {
            return Err(malformed(pickle.offset, format!("tensor {} is in {storage}, which is missing", tensor.name)));
        };
        let size = tensor.dtype.unit().1 as u64;
        if tensor.storage_length.checked_mul(size) != Some(entry.length) {
            let (length, dtype) = (tensor.storage_length, tensor.dtype.name());
            let reason = format!("{storage} has {} bytes, {length} elements of {dtype} were announced", entry.length);
            return Err(malformed(entry.offset, reason));
        }
        if !is_contiguous(&tensor.shape, &tensor.stride) {
            return Err(Error::Unsupported {
                what: format!("the layout of tensor {} in {}", tensor.name, source.name()),
                found: format!("shape {:?} with strides {:?}", tensor.shape, tensor.stride),
                supported: "contiguous tensors: call .contiguous() before saving".to_owned(),
            });
        }
        let shape: Option<Vec<usize>> = tensor.shape.iter().map(|size| usize::try_from(*size).ok()).collect();
        let info = shape.map(|shape| TensorInfo { dtype: tensor.dtype, shape });
        let start = tensor.offset.checked_mul(size);
        let end = info.as_ref().and_then(TensorInfo::bytes).and_then(|bytes| start?.checked_add(bytes));
        match (info, start, end) {
            (Some(info), Some(start), Some(end)) if end <= entry.length => {
                Ok(StoredTensor { big_endian, ..StoredTensor::new(tensor.name, info, entry.offset + start) })
            }
            _ => {
                let (name, shape, offset) = (tensor.name, tensor.shape, tensor.offset);
                Err(malformed(entry.offset, format!("tensor {name} of shape {shape:?} at {offset} leaves its storage")))
            }
        }
    };
    tensors.into_iter().map(place).collect()
}

/// Whether elements are in order without gaps. Strides of dimensions of size 1, and of empty tensors, are ignored.
fn is_contiguous(shape: &[u64], stride: &[u64]) -> bool {
    let mut expected = Some(1u64);
    shape.contains(&0)
        || shape.iter().zip(stride).rev().filter(|(size, _)| **size != 1).all(|(size, stride)| {
            let fits = expected == Some(*stride);
            expected = stride.checked_mul(*size);
            fits
        })
}

#[cfg(test)]
mod tests {
    use super::super::zip::tests::archive;
    use super::*;
    use crate::io::MemorySource;

    #[test]
    fn contiguity_ignores_dimensions_of_one() {
        assert!(is_contiguous(&[2, 3], &[3, 1]));
        assert!(is_contiguous(&[12, 1, 7, 7], &[49, 1, 7, 1])); // depthwise weights saved as channels_last
        assert!(is_contiguous(&[], &[]));
        assert!(is_contiguous(&[0, 5], &[9, 9]));
        assert!(!is_contiguous(&[2, 3], &[1, 2]));
        assert!(!is_contiguous(&[2, 3], &[0, 0]));
        assert!(!is_contiguous(&[u64::MAX, 4, 1 << 63], &[0, 1 << 63, 1]));
    }

    #[test]
    fn bad_archives_are_refused_with_a_reason() {
        let tensor = |elements: u8| {
            [
                b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n\
                  X\x01\0\0\x000X\x03\0\0\0cpuK"
                    .as_slice(),
                &[elements],
                b"tQK\x01K\x02\x85K\x01\x85\x89}tRs.",
            ]
            .concat()
        };
        let good = tensor(3);
        let read = |bytes: Vec<u8>| pollster::block_on(read_state_dict(&MemorySource::new("x.bin", bytes)));
        let tensors = read(archive(&[("a/data.pkl", &good), ("a/byteorder", b"big"), ("a/data/0", &[0; 12])])).unwrap();
        assert_eq!((tensors[0].info.shape.as_slice(), tensors[0].big_endian), ([2].as_slice(), true));
        let evil = b"cos\nsystem\n(X\x04\0\0\0echotR.";
        let cases = [
            (vec![], "neither a torch archive"),
            (b"<html>".to_vec(), "neither a torch archive"),
            (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.".to_vec(), "torch's old file format"),
            (archive(&[("a/version", b"3")]), "exactly one data.pkl"),
            (archive(&[("a/data.pkl", b"."), ("b/data.pkl", b".")]), "exactly one data.pkl"),
            (archive(&[("a/data.pkl", evil)]), "wants to call os.system"),
            (archive(&[("a/data.pkl", &good)]), "a/data/0, which is missing"),
            (archive(&[("a/data.pkl", &good), ("a/data/0", &[0; 8])]), "8 bytes, 3 elements of F32"),
            (archive(&[("a/data.pkl", &tensor(2)), ("a/data/0", &[0; 8])]), "leaves its storage"),
            (archive(&[("a/data.pkl", &good), ("a/byteorder", b"pdp"), ("a/data/0", &[0; 12])]), "byte order \"pdp\""),
        ];
        for (bytes, reason) in cases {
            let error = read(bytes).unwrap_err().to_string();
            assert!(error.contains("x.bin") && error.contains(reason), "{error:?} lacks {reason:?}");
        }
    }
}
