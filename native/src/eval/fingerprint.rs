//! A hash of a model's files that changes when the model is trained further, but not when it is moved.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use mgm::Result;
use sha2::{Digest, Sha256};

use crate::files::{hash, hex, io_error};

/// Bytes hashed at the beginning, in the middle and at the end of each file. Training changes weights everywhere, and
/// models are too large to read twice.
const SAMPLE: u64 = 64 << 10;

/// Hashes a model's file, or the files in its folder (without subfolders), and the folders and files that replace its
/// parts.
///
/// # Errors
/// [`mgm::Error::Io`].
pub fn of(paths: &[&Path]) -> Result<String> {
    let mut hasher = Sha256::new();
    for path in paths {
        for file in files(path).map_err(|error| io_error(path, error))? {
            if path.is_dir() {
                hasher.update(file.file_name().unwrap_or_default().as_encoded_bytes());
            }
            add(&mut hasher, &file).map_err(|error| io_error(&file, error))?;
        }
    }
    Ok(hex(&hasher.finalize()[..8]))
}

fn files(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    let mut files: Vec<PathBuf> = entries.into_iter().filter(|path| path.is_file()).collect();
    files.sort();
    Ok(files)
}

fn add(hasher: &mut Sha256, path: &Path) -> std::io::Result<()> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    hasher.update(length.to_le_bytes());
    for start in [0, length / 2, length.saturating_sub(SAMPLE)] {
        file.seek(SeekFrom::Start(start))?;
        hash(hasher, &mut (&mut file).take(SAMPLE), |_| ())?;
    }
    Ok(())
}
