//! Folders and files on disk.

use std::ffi::OsStr;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};

use super::{ByteSource, Folder, LocalFuture};
use crate::{Error, Result, parallel};

/// Bytes of a read that one thread copies from the system's cache.
const READ_PIECE: usize = 1 << 20;

/// A folder on disk.
#[derive(Debug, Clone)]
pub struct DiskFolder {
    path: PathBuf,
    name: String,
}

impl DiskFolder {
    /// The folder at `path`. It need not exist: [`Folder::open`] then finds no file in it. A repository's folder in the
    /// Hugging Face cache (`models--OWNER--NAME`) stands for its snapshot: that of `refs/main`, or its only one.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let path = hub_snapshot(&path).unwrap_or(path);
        let name = path.display().to_string();
        Self { path, name }
    }

    /// Its path: in the Hugging Face cache that of the snapshot.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Folder for DiskFolder {
    fn name(&self) -> &str {
        &self.name
    }

    fn open<'a>(&'a self, file: &'a str) -> LocalFuture<'a, Result<Option<Rc<dyn ByteSource>>>> {
        Box::pin(async move {
            let path = in_any_case(&self.path, file).unwrap_or_else(|| self.path.join(file));
            if let (Err(_), Ok(target)) = (path.metadata(), path.read_link()) {
                return Err(Error::MissingFile {
                    file: target.display().to_string(),
                    hint: format!("{} is a link to it; is the download complete?", path.display()),
                });
            }
            match DiskFile::open(path) {
                Ok(source) => Ok(Some(Rc::new(source) as Rc<dyn ByteSource>)),
                Err(Error::Io {
                    kind: ErrorKind::NotFound | ErrorKind::IsADirectory | ErrorKind::NotADirectory,
                    ..
                }) => Ok(None),
                Err(error) => Err(error),
            }
        })
    }

    fn entries(&self) -> LocalFuture<'_, Vec<String>> {
        Box::pin(async move {
            let Ok(entries) = self.path.read_dir() else { return Vec::new() };
            let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
            let mut names: Vec<String> = names.collect();
            names.sort();
            names
        })
    }

    fn child(&self, name: &str) -> Rc<dyn Folder> {
        let path = self.path.join(name);
        if path.exists() {
            return Rc::new(Self::new(path));
        }
        // The system follows links before `..`. Next to the link there may be other files than next to its target.
        let mut next_to_link = PathBuf::new();
        for part in path.components() {
            match part {
                Component::ParentDir if next_to_link.file_name().is_some() => drop(next_to_link.pop()),
                part => next_to_link.push(part),
            }
        }
        if next_to_link.exists() {
            return Rc::new(Self::new(next_to_link));
        }
        Rc::new(Self::new(in_any_case(&self.path, name).unwrap_or(path)))
    }
}

/// The path below `folder`; where there is no such name, one that differs in the case of its letters only, as file
/// systems of other systems find it. `None` if there is none either.
fn in_any_case(folder: &Path, relative: &str) -> Option<PathBuf> {
    let mut path = folder.to_owned();
    for part in relative.split('/') {
        let exact = path.join(part);
        path = if exact.symlink_metadata().is_ok() {
            exact
        } else {
            let names = path.read_dir().ok()?.filter_map(|entry| Some(entry.ok()?.file_name()));
            path.join(names.filter(|name| name.eq_ignore_ascii_case(part)).min()?)
        };
    }
    Some(path)
}

/// The snapshot that a repository's folder in the Hugging Face cache stands for.
fn hub_snapshot(repository: &Path) -> Option<PathBuf> {
    let snapshots = repository.join("snapshots");
    let commit = std::fs::read_to_string(repository.join("refs/main")).unwrap_or_default();
    let main = Some(snapshots.join(commit.trim())).filter(|snapshot| !commit.is_empty() && snapshot.is_dir());
    if main.is_some() {
        return main;
    }
    let mut found = snapshots.read_dir().ok()?.filter_map(|entry| Some(entry.ok()?.path())).filter(|it| it.is_dir());
    let only = found.next().filter(|_| found.next().is_none())?;
    // Copies may lack `blobs` and `refs`. A model's own folder may have one of this name too, and it has files.
    let mut entries = repository.read_dir().ok()?.filter_map(|entry| entry.ok());
    let is_hidden = |name: &OsStr| name.as_encoded_bytes().starts_with(b".");
    let has_files = entries.any(|entry| !is_hidden(&entry.file_name()) && entry.path().is_file());
    (!has_files).then_some(only)
}

/// One file on disk, read at offsets.
#[derive(Debug)]
pub struct DiskFile {
    file: File,
    name: String,
    length: u64,
}

impl DiskFile {
    /// Opens a file for reading.
    ///
    /// # Errors
    /// [`Error::Io`] with the kind that the system reports; [`ErrorKind::IsADirectory`] for a folder,
    /// [`ErrorKind::InvalidInput`] for what is neither a folder nor a regular file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let name = path.as_ref().display().to_string();
        let open = || {
            // Before the file is opened: opening a pipe waits for a writer.
            let metadata = std::fs::metadata(&path)?;
            if metadata.is_dir() {
                return Err(std::io::Error::new(ErrorKind::IsADirectory, "this is a folder, not a file"));
            }
            if !metadata.is_file() {
                let reason = "this is not a regular file but a pipe, a socket or a device";
                return Err(std::io::Error::new(ErrorKind::InvalidInput, reason));
            }
            let file = File::open(&path)?;
            let length = file.metadata()?.len();
            Ok((file, length))
        };
        let (file, length) = open().map_err(|error| Error::io(&name, &error))?;
        Ok(Self { file, name, length })
    }
}

impl ByteSource for DiskFile {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.length
    }

    fn read<'a>(&'a self, offset: u64, buffer: &'a mut [u8]) -> LocalFuture<'a, Result<()>> {
        Box::pin(async move {
            let length = buffer.len();
            let failed = Mutex::new(None);
            let pieces = buffer.chunks_mut(READ_PIECE).zip((offset..).step_by(READ_PIECE));
            parallel::for_each(pieces, |(piece, offset)| {
                if let Err(error) = read_exact_at(&self.file, piece, offset) {
                    *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                }
            });
            match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
                None => Ok(()),
                Some(error) => Err(Error::Io {
                    file: self.name.clone(),
                    kind: error.kind(),
                    reason: format!("reading {length} bytes at offset {offset}: {error}"),
                }),
            }
        })
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut buffer: &mut [u8], mut offset: u64) -> std::io::Result<()> {
    while !buffer.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, buffer, offset)? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            read => {
                buffer = &mut buffer[read..];
                offset += read as u64;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_at_offsets_and_errors_keep_their_kind() {
        let path = std::env::temp_dir().join(format!("mgm-disk-{}", std::process::id()));
        std::fs::create_dir_all(path.join("sub")).unwrap();
        std::fs::write(path.join("sub/file"), [1, 2, 3]).unwrap();
        let folder = DiskFolder::new(&path);
        let open = |folder: &dyn Folder, name: &str| pollster::block_on(folder.open(name)).unwrap();
        assert!(open(&folder, "none").is_none() && open(&folder, "sub").is_none());
        let source = open(&*folder.child("sub"), "file").unwrap();
        let mut bytes = [0; 2];
        pollster::block_on(source.read(1, &mut bytes)).unwrap();
        assert_eq!((source.len(), bytes), (3, [2, 3]));
        let error = pollster::block_on(source.read(2, &mut bytes)).unwrap_err();
        assert!(matches!(error, Error::Io { kind: ErrorKind::UnexpectedEof, .. }), "{error}");
        let error = DiskFile::open(path.join("none")).unwrap_err();
        assert!(matches!(error, Error::Io { kind: ErrorKind::NotFound, .. }), "{error}");
        std::fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn names_in_other_cases_are_found_where_the_exact_one_is_missing() {
        let root = std::env::temp_dir().join(format!("mgm-case-{}", std::process::id()));
        std::fs::create_dir_all(root.join("UNet/Sub")).unwrap();
        for (file, byte) in [("CONFIG.JSON", 1), ("UNet/Sub/X.bin", 2), ("both.json", 3), ("BOTH.json", 4)] {
            std::fs::write(root.join(file), [byte]).unwrap();
        }
        let folder = DiskFolder::new(&root);
        let first = |folder: &dyn Folder, name: &str| {
            let source = pollster::block_on(folder.open(name)).unwrap()?;
            let mut byte = [0];
            pollster::block_on(source.read(0, &mut byte)).unwrap();
            Some(byte[0])
        };
        assert_eq!(first(&folder, "config.json"), Some(1));
        assert_eq!(first(&folder, "unet/sub/x.BIN"), Some(2));
        assert_eq!(first(&*folder.child("unet").child("SUB"), "x.bin"), Some(2));
        assert_eq!(first(&*folder.child("unet/sub"), "../../config.json"), Some(1));
        if !cfg!(any(windows, target_os = "macos")) {
            assert_eq!((first(&folder, "both.json"), first(&folder, "BOTH.json")), (Some(3), Some(4)));
        }
        assert_eq!((first(&folder, "none.json"), first(&folder, "unet")), (None, None));
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_repository_of_the_hub_stands_for_its_snapshot() {
        let root = std::env::temp_dir().join(format!("mgm-snapshot-{}", std::process::id()));
        let found = |name: &str| DiskFolder::new(root.join(name)).path().strip_prefix(&root).unwrap().to_owned();
        for folder in ["whole/blobs", "whole/snapshots/a", "whole/snapshots/b", "whole/refs", "copy/snapshots/a"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        std::fs::write(root.join("whole/refs/main"), "b\n").unwrap();
        assert_eq!(found("whole"), Path::new("whole/snapshots/b"));
        // Without references and blobs, and with what file managers leave.
        std::fs::write(root.join("copy/.DS_Store"), "").unwrap();
        assert_eq!(found("copy"), Path::new("copy/snapshots/a"));
        // A reference to a snapshot that was not copied.
        std::fs::create_dir_all(root.join("copy/refs")).unwrap();
        std::fs::write(root.join("copy/refs/main"), "b").unwrap();
        assert_eq!(found("copy"), Path::new("copy/snapshots/a"));
        std::fs::create_dir_all(root.join("copy/snapshots/c")).unwrap();
        assert_eq!(found("copy"), Path::new("copy"));
        // A model's own folder.
        std::fs::remove_dir_all(root.join("copy/snapshots/c")).unwrap();
        std::fs::write(root.join("copy/config.json"), "{}").unwrap();
        assert_eq!(found("copy"), Path::new("copy"));
        std::fs::remove_dir_all(root).unwrap();
    }
}
