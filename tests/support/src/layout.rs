//! The files that released checkpoints consist of.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use safetensors::tensor::TensorView;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use crate::about;
use crate::manifest::{Dtype, Tensor};

/// Added to a torch archive's name: the stored `data.pkl` that torch wrote for it.
pub const PICKLE: &str = ".pkl";

/// Added to a GGUF file's name: the stored header that the gguf package wrote for it, up to the first tensor's data.
pub const HEADER: &str = ".header";
/// Tensors in a GGUF file begin at multiples of this many bytes.
const GGUF_ALIGNMENT: usize = 32;

/// Writes a safetensors file as transformers and diffusers do.
///
/// # Errors
/// If the file cannot be written.
pub fn write_safetensors(path: &Path, tensors: &[Tensor], data: &[Vec<u8>]) -> io::Result<()> {
    let views = tensors.iter().zip(data).map(|(tensor, bytes)| view(tensor, bytes)).collect::<io::Result<Vec<_>>>();
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let views = views.map_err(|error| about(path, error))?;
    safetensors::serialize_to_file(views, Some(metadata), path).map_err(|error| about(path, error))
}

/// A tensor's name and its bytes with their type and shape.
fn view<'a>(tensor: &'a Tensor, bytes: &'a [u8]) -> io::Result<(&'a str, TensorView<'a>)> {
    let dtype = match tensor.dtype {
        Dtype::F32 => safetensors::Dtype::F32,
        Dtype::F16 => safetensors::Dtype::F16,
        Dtype::Bf16 => safetensors::Dtype::BF16,
        Dtype::I64 => safetensors::Dtype::I64,
        quantised => return Err(io::Error::other(format!("{}: safetensors has no {quantised:?}", tensor.name))),
    };
    Ok((&tensor.name, TensorView::new(dtype, tensor.shape.clone(), bytes).map_err(io::Error::other)?))
}

/// Writes a GGUF file: its header, then each tensor's bytes, aligned.
///
/// # Errors
/// If the file cannot be written.
pub fn write_gguf(path: &Path, header: &[u8], data: &[Vec<u8>]) -> io::Result<()> {
    let mut file = header.to_vec();
    for bytes in data {
        file.extend(bytes);
        file.resize(file.len().next_multiple_of(GGUF_ALIGNMENT), 0);
    }
    std::fs::write(path, file).map_err(|error| about(path, error))
}

/// Writes a torch archive: an uncompressed zip of a pickle, which names the tensors, and one record for each storage.
///
/// # Errors
/// If the file cannot be written.
pub fn write_torch(path: &Path, pickle: &[u8], storages: &[Vec<u8>]) -> io::Result<()> {
    let root = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let mut archive = ZipWriter::new(BufWriter::new(File::create(path).map_err(|error| about(path, error))?));
    // torch aligns records so that they can be mapped.
    let options = SimpleFileOptions::default().with_alignment(64);
    let first =
        [("data.pkl".to_owned(), pickle), (".format_version".to_owned(), b"1"), ("byteorder".to_owned(), b"little")];
    let data = storages.iter().enumerate().map(|(index, bytes)| (format!("data/{index}"), &**bytes));
    for (name, bytes) in first.into_iter().chain(data).chain([("version".to_owned(), &b"3\n"[..])]) {
        archive.start_file(format!("{root}/{name}"), options).map_err(|error| about(path, error))?;
        archive.write_all(bytes)?;
    }
    archive.finish().map_err(|error| about(path, error))?.flush()
}
