//! Which model answered: a hash that changes when the model is trained on, and not when it is moved.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use mgm::Result;
use mgm_native::files::{hex, io_error};
use sha2::{Digest, Sha256};

/// Bytes read at the beginning, in the middle and at the end of a file: weights that were trained on differ everywhere, and
/// models are too large to be read twice.
const PIECE: u64 = 64 << 10;

/// Of the files in a model's folder (not of folders in it), or of its file, and of more folders and files that take the
/// place of its parts.
pub fn of(paths: &[&Path]) -> Result<String> {
    let mut sum = Sha256::new();
    for path in paths {
        for file in files(path).map_err(|error| io_error(path, error))? {
            if path.is_dir() {
                sum.update(file.file_name().unwrap_or_default().as_encoded_bytes());
            }
            add(&mut sum, &file).map_err(|error| io_error(&file, error))?;
        }
    }
    Ok(hex(&sum.finalize()[..8]))
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

fn add(sum: &mut Sha256, path: &Path) -> std::io::Result<()> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    sum.update(length.to_le_bytes());
    for start in [0, length / 2, length.saturating_sub(PIECE)] {
        let mut piece = Vec::new();
        file.seek(SeekFrom::Start(start))?;
        (&mut file).take(PIECE).read_to_end(&mut piece)?;
        sum.update(&piece);
    }
    Ok(())
}
