//! `mgm inspect --verify`: compares a model's files with the checksums that come with them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use mgm::io::{ByteSource, DiskFile, DiskFolder, Folder, read_file};
use mgm::weights::bundle::MANIFEST;
use mgm::weights::bundle::read::Bundle;
use mgm::weights::checkpoint::Checkpoint;
use mgm::{Error, Result};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::files::{hash, hex, io_error};
use crate::{CliError, progress};

/// Largest index that is read.
const MAX_INDEX: u64 = 64 << 20;

/// A file and the SHA-256 that it should have.
struct Expected {
    file: PathBuf,
    sha256: String,
    /// Where the SHA-256 comes from.
    source: &'static str,
}

/// Verifies the files of a bundle, a folder in the Hugging Face cache, or a checkpoint with an index.
///
/// # Errors
/// [`Error::Malformed`] for the first file that differs; [`Error::InvalidArgument`] if no file has a checksum; the
/// errors of reading.
pub async fn run(paths: &[&Path]) -> std::result::Result<(), CliError> {
    let mut expected = Vec::new();
    let mut checked_sizes = 0;
    for path in paths {
        let on_disk = DiskFolder::new(*path);
        let folder: Rc<dyn Folder> = Rc::new(on_disk.clone());
        let files = if path.is_file() { vec![path.to_path_buf()] } else { files_in(on_disk.path()) };
        match Bundle::find(&folder).await? {
            Some(bundle) => expected.extend(bundle.manifest.all_files().map(|entry| Expected {
                file: on_disk.path().join(&entry.file),
                sha256: entry.sha256.to_ascii_lowercase(),
                source: MANIFEST,
            })),
            None => expected.extend(files.iter().filter_map(|file| cached(file))),
        }
        for index in files.iter().filter(|file| file.to_string_lossy().ends_with(".index.json")) {
            checked_sizes += usize::from(check_total_size(index).await?);
        }
    }
    if expected.is_empty() && checked_sizes == 0 {
        let reason = "nothing to verify: bundles and files in the Hugging Face cache have checksums, checkpoints with \
                      an index a total size";
        return Err(Error::InvalidArgument(reason.to_owned()).into());
    }
    let (mut files, mut total) = (Vec::new(), 0);
    for Expected { file, sha256, source } in &expected {
        files.push((file, sha256, *source));
        total += DiskFile::open(file)?.len();
    }
    let bar = progress::bytes(total, "verifying");
    for (file, sha256, source) in &files {
        let mut hasher = Sha256::new();
        let hashed = File::open(file).and_then(|mut file| hash(&mut hasher, &mut file, |bytes| bar.inc(bytes)));
        hashed.map_err(|error| io_error(file, error))?;
        let found = hex(&hasher.finalize());
        if found != **sha256 {
            bar.finish_and_clear();
            let reason = format!(
                "its SHA-256 is {found}, expected {sha256} ({source}): the file is damaged or was changed; copy or \
                 download it again"
            );
            return Err(Error::Malformed { file: file.display().to_string(), offset: 0, reason }.into());
        }
    }
    bar.finish_and_clear();
    let mut out = std::io::stdout().lock();
    if !files.is_empty() {
        let sources: BTreeSet<&str> = files.iter().map(|(.., source)| *source).collect();
        let sources: Vec<&str> = sources.into_iter().collect();
        let megabytes = total as f64 / 1e6;
        writeln!(out, "verified: {} files, {megabytes:.1} MB, by SHA-256 ({})", files.len(), sources.join(", "))?;
    }
    if checked_sizes > 0 {
        writeln!(out, "verified: the total size of {checked_sizes} indices (no checksums)")?;
    }
    writeln!(out)?;
    Ok(())
}

/// The files in a folder and its subfolders, sorted.
fn files_in(folder: &Path) -> Vec<PathBuf> {
    let entries = |folder: &Path| folder.read_dir().into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let mut files: Vec<PathBuf> = Vec::new();
    for path in entries(folder) {
        // Diffusers' layout has one level of folders.
        if path.is_dir() { files.extend(entries(&path).filter(|path| !path.is_dir())) } else { files.push(path) }
    }
    files.sort();
    files
}

/// A link into the Hugging Face cache's `blobs`, whose large files have their SHA-256 as name.
fn cached(file: &Path) -> Option<Expected> {
    let target = file.read_link().ok()?;
    let sha256 = target.file_name()?.to_str()?.to_ascii_lowercase();
    let is_blob = target.parent()?.ends_with("blobs");
    let is_digest = sha256.len() == 64 && sha256.bytes().all(|digit| digit.is_ascii_hexdigit());
    (is_blob && is_digest).then(|| Expected { file: file.to_owned(), sha256, source: "Hugging Face cache" })
}

/// Compares the bytes of an index's tensors with its `total_size`. Returns whether it has one.
async fn check_total_size(index: &Path) -> Result<bool> {
    let folder = DiskFolder::new(index.parent().unwrap_or(Path::new(".")));
    let name = index.file_name().unwrap_or_default().to_string_lossy();
    let Some(bytes) = read_file(&folder, &name, MAX_INDEX).await? else { return Ok(false) };
    let json: Value = mgm::json::from_slice(&bytes)
        .map_err(|error| Error::Config { file: index.display().to_string(), reason: error.to_string() })?;
    let Some(expected) = json.pointer("/metadata/total_size").and_then(mgm::json::number) else { return Ok(false) };
    let checkpoint = Checkpoint::open(&folder, &[&name]).await?;
    let found: u64 = checkpoint.tensors().map(|(_, info)| info.bytes().unwrap_or(0)).sum();
    if found as f64 == expected {
        return Ok(true);
    }
    let reason = format!(
        "the tensors that it lists have {found} bytes, its total_size is {expected}: the index and its shards do not \
         belong together"
    );
    Err(Error::Malformed { file: index.display().to_string(), offset: 0, reason })
}
