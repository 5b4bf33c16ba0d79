//! Golden cases: small checkpoints in the released layouts, and what a correct runtime computes from them.
//!
//! The repository stores no random weights. Each case in `tests/goldens` has a manifest, `weights.json`, from which
//! [`goldens`] generates the checkpoint under the target directory, once for each state of the stored files; [`data`]
//! does the same for folders of `tests/data`. The Python scripts in `tests/reference` generate the same bytes: see
//! [`random`] for the numbers and [`Manifest`] for the fields.
//!
//! ```no_run
//! let checkpoint = mgm_test_support::goldens().join("gemma-2b/MGM-2B");
//! ```

pub mod layout;
pub mod manifest;
pub mod random;

use std::ffi::OsStr;
use std::fs;
use std::io::{Error, Result};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use sha2::{Digest, Sha256};

pub use manifest::Manifest;

/// The repository's folder of stored files: `tests/goldens`.
#[must_use]
pub fn stored() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../goldens")
}

/// The names of all cases, sorted.
///
/// # Panics
/// If `tests/goldens` cannot be read.
#[must_use]
pub fn names() -> Vec<String> {
    let entries = fs::read_dir(stored()).unwrap_or_else(|error| panic!("{}: {error}", stored().display()));
    let folders = entries.flatten().filter(|entry| entry.path().join(manifest::FILE).is_file());
    let mut names: Vec<String> = folders.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The folder of all cases, complete with their weights: `goldens().join(CASE)`. Generated where that has not been
/// done.
///
/// Its name changes with the stored files, so that it is never out of date and several work trees can share a target
/// directory.
///
/// # Panics
/// If a file cannot be read or written, or a generated file's digest is not the manifest's.
pub fn goldens() -> &'static Path {
    static GOLDENS: OnceLock<PathBuf> = OnceLock::new();
    GOLDENS.get_or_init(|| generate_once(&stored(), &names()).unwrap_or_else(|error| panic!("golden cases: {error}")))
}

/// A folder of `tests/data`, complete with the weights that its manifest describes. Generated where that has not been
/// done.
///
/// # Panics
/// As [`goldens`].
#[must_use]
pub fn data(folder: &str) -> PathBuf {
    let stored = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data").join(folder);
    generate_once(&stored, &[String::new()]).unwrap_or_else(|error| panic!("{}: {error}", stored.display()))
}

/// Generates cases, subfolders of `stored`, in a folder whose name depends on the stored files.
fn generate_once(stored: &Path, cases: &[String]) -> Result<PathBuf> {
    let key = digest_of_stored_files(stored)?;
    let parent = target_directory().join("goldens");
    let folder = parent.join(&key);
    if folder.is_dir() {
        return Ok(folder);
    }
    // Another process or thread may do the same: each writes its own folder, and the first renaming wins.
    static ATTEMPTS: AtomicUsize = AtomicUsize::new(0);
    let attempt = ATTEMPTS.fetch_add(1, Ordering::Relaxed);
    let fresh = parent.join(format!(".{key}.{}.{attempt}", std::process::id()));
    let _ = fs::remove_dir_all(&fresh);
    for case in cases {
        generate_in(&stored.join(case), &fresh.join(case))?;
    }
    let renamed = fs::rename(&fresh, &folder);
    if folder.is_dir() {
        let _ = fs::remove_dir_all(&fresh);
        return Ok(folder);
    }
    renamed.map_err(|error| about(&folder, error)).map(|()| folder)
}

/// Generates a case in the folder `out`, which must not exist: copies the stored files and writes the checkpoint.
///
/// # Errors
/// If the case is missing, a file cannot be read or written, or a generated file's digest is not the manifest's.
pub fn generate(name: &str, out: &Path) -> Result<()> {
    generate_in(&stored().join(name), out)
}

fn generate_in(case: &Path, out: &Path) -> Result<()> {
    let manifest = Manifest::read(case)?;
    if out.exists() {
        return Err(Error::other(format!("{} exists", out.display())));
    }
    copy(case, out)?;
    for file in &manifest.files {
        let tensors = file.generate(&manifest.seed)?;
        let path = out.join(&file.path);
        let parent = path.parent().unwrap_or(out);
        fs::create_dir_all(parent).map_err(|error| about(parent, error))?;
        let part = |ending: &str| read(&case.join(format!("{}{ending}", file.path)));
        match path.extension().and_then(OsStr::to_str) {
            Some("bin") => layout::write_torch(&path, &part(layout::PICKLE)?, &tensors)?,
            Some("gguf") => layout::write_gguf(&path, &part(layout::HEADER)?, &tensors)?,
            _ => layout::write_safetensors(&path, &file.tensors, &tensors)?,
        }
    }
    Ok(())
}

/// Copies a folder's files except those that only describe the weights.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).map_err(|error| about(to, error))?;
    for path in sorted(from)? {
        let name = path.file_name().unwrap_or_default();
        let target = to.join(name);
        if path.is_dir() {
            copy(&path, &target)?;
        } else if name != manifest::FILE && !is_part(&name.to_string_lossy()) {
            fs::write(&target, read(&path)?).map_err(|error| about(&target, error))?;
        }
    }
    Ok(())
}

/// Whether a stored file is only a part of a generated one.
fn is_part(name: &str) -> bool {
    [layout::PICKLE, layout::HEADER].iter().any(|ending| name.ends_with(ending))
}

/// A digest of all stored files' paths and contents and of this crate's sources.
fn digest_of_stored_files(root: &Path) -> Result<String> {
    fn add(hash: &mut Sha256, root: &Path, folder: &Path) -> Result<()> {
        for path in sorted(folder)? {
            if path.is_dir() {
                add(hash, root, &path)?;
            } else {
                let name = path.strip_prefix(root).unwrap_or(&path);
                hash.update(Sha256::digest(name.to_string_lossy().replace('\\', "/")));
                hash.update(Sha256::digest(read(&path)?));
            }
        }
        Ok(())
    }
    let mut hash = Sha256::new();
    for source in
        [include_str!("lib.rs"), include_str!("layout.rs"), include_str!("manifest.rs"), include_str!("random.rs")]
    {
        hash.update(Sha256::digest(source));
    }
    add(&mut hash, root, root)?;
    Ok(hex(&hash.finalize()[..8]))
}

/// The target directory that this program was built in, which cargo marks with `CACHEDIR.TAG`.
fn target_directory() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    let marked = program.ancestors().find(|folder| folder.join("CACHEDIR.TAG").is_file());
    marked.map_or_else(|| std::env::temp_dir().join("mgm"), Path::to_path_buf)
}

fn sorted(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).map_err(|error| about(folder, error))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|error| about(path, error))
}

pub(crate) fn about(path: &Path, error: impl std::fmt::Display) -> Error {
    Error::other(format!("{}: {error}", path.display()))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Python wrote the digests: equal ones mean that both generate the same bytes.
    #[test]
    fn every_case_has_the_digests_that_python_wrote() {
        let names = names();
        assert!(names.len() >= 13, "{names:?}");
        for name in names {
            let folder = goldens().join(&name);
            for file in Manifest::read(&stored().join(&name)).expect("a manifest").files {
                assert!(folder.join(&file.path).is_file(), "{name}: {}", file.path);
            }
            assert!(folder.join("expected.json").is_file(), "{name}");
            assert!(!folder.join(manifest::FILE).exists(), "{name}");
        }
    }

    #[test]
    fn generated_data_has_the_digests_that_python_wrote() {
        for (folder, file) in [
            ("gguf", "llama.gguf"),
            ("diffusion/images", "style.safetensors"),
            ("diffusion/images", "inpainting.safetensors"),
        ] {
            let folder = data(folder);
            assert!(folder.join(file).is_file(), "{}: {file}", folder.display());
            let mut parts = sorted(&folder).expect("a folder").into_iter();
            assert!(!parts.any(|path| is_part(&path.to_string_lossy())), "{}", folder.display());
        }
    }

    #[test]
    fn unknown_cases_and_existing_folders_are_errors() {
        let missing = generate("nothing", Path::new("/nowhere")).expect_err("no such case").to_string();
        assert!(missing.contains("nothing"), "{missing}");
        let occupied = generate("no-image", &goldens().join("no-image")).expect_err("it is there already").to_string();
        assert!(occupied.contains("exists"), "{occupied}");
    }
}
