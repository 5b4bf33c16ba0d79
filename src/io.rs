//! Byte sources and folders.
//!
//! The core reads every file through [`ByteSource`] and [`Folder`]. With the feature `fs`, `DiskFolder` and `DiskFile`
//! read from disk; [`MemoryFolder`] holds bytes in memory; a browser front implements the traits over blobs and range
//! requests. An implementation of your own lets the same models load from anywhere.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::ErrorKind;
use std::pin::Pin;
use std::rc::Rc;

use crate::{Error, Result};

#[cfg(all(feature = "fs", any(unix, windows)))]
mod disk;
#[cfg(all(feature = "fs", any(unix, windows)))]
pub use disk::{DiskFile, DiskFolder};

/// A boxed future that is not `Send`, since futures of a browser are not.
pub type LocalFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// Bytes that can be read at any offset.
pub trait ByteSource {
    /// The name to show in messages.
    fn name(&self) -> &str;
    /// Length in bytes.
    fn len(&self) -> u64;
    /// Whether there are no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Fills `buffer` with the bytes from `offset` on.
    ///
    /// # Errors
    /// [`Error::Io`] if the read fails or the source ends before the buffer is full.
    fn read<'a>(&'a self, offset: u64, buffer: &'a mut [u8]) -> LocalFuture<'a, Result<()>>;
}

/// A folder of files.
pub trait Folder {
    /// The name to show in messages.
    fn name(&self) -> &str;
    /// Opens a file by its path relative to this folder (`/` between parts); `None` if there is no such file.
    ///
    /// # Errors
    /// [`Error::Io`] if the file is there and cannot be opened.
    fn open<'a>(&'a self, file: &'a str) -> LocalFuture<'a, Result<Option<Rc<dyn ByteSource>>>>;
    /// Names of the files and folders in this folder, sorted. None if there is no such folder, or if the host cannot
    /// list it: then files are found only under the names that are tried.
    fn entries(&self) -> LocalFuture<'_, Vec<String>> {
        Box::pin(async { Vec::new() })
    }
    /// The folder at a relative path (`..` allowed), whether or not it exists.
    fn child(&self, name: &str) -> Rc<dyn Folder>;
}

/// Reads a whole file of at most `limit` bytes; `None` if there is no such file.
///
/// # Errors
/// [`Error::Malformed`] if it is larger than `limit`, so that no file decides how much memory is allocated;
/// [`Error::Io`] if it cannot be opened or read.
pub async fn read_file(folder: &dyn Folder, file: &str, limit: u64) -> Result<Option<Vec<u8>>> {
    let Some(source) = folder.open(file).await? else { return Ok(None) };
    let bytes = read_range(&*source, 0, source.len(), limit).await?;
    refuse_lfs_pointer_in(source.name(), &bytes)?;
    Ok(Some(bytes))
}

/// Reads `length` bytes at `offset` into memory. Fails if the file ends before them or `length` exceeds `limit`.
pub(crate) async fn read_range(source: &dyn ByteSource, offset: u64, length: u64, limit: u64) -> Result<Vec<u8>> {
    let malformed = |reason| Error::Malformed { file: source.name().to_owned(), offset, reason };
    if offset.checked_add(length).is_none_or(|end| end > source.len()) {
        let size = source.len();
        return Err(malformed(format!(
            "{length} bytes expected here, but the file ends at byte {size}: is it truncated?"
        )));
    }
    let length = match usize::try_from(length) {
        Ok(bytes) if length <= limit => bytes,
        _ => return Err(malformed(format!("{length} bytes here exceed the limit of {limit}"))),
    };
    let mut bytes = vec![0; length];
    source.read(offset, &mut bytes).await?;
    Ok(bytes)
}

/// What to do if `start`, the first bytes of a file, are a Git LFS pointer, which Git leaves in place of a large file.
pub(crate) fn lfs_pointer(start: &[u8]) -> Option<String> {
    start.starts_with(b"version https://git-lfs.github.com/spec/").then(|| {
        "this is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository, or download the file"
            .to_owned()
    })
}

/// Fails if `source` is a Git LFS pointer.
pub(crate) async fn refuse_lfs_pointer(source: &dyn ByteSource) -> Result<()> {
    // Pointers are shorter than 1024 bytes by their specification.
    if source.len() >= 1024 {
        return Ok(());
    }
    refuse_lfs_pointer_in(source.name(), &read_range(source, 0, source.len(), 1024).await?)
}

/// Fails if `bytes` of the file `name` are a Git LFS pointer.
///
/// # Errors
/// [`Error::Malformed`], which says to run `git lfs pull`.
pub fn refuse_lfs_pointer_in(name: &str, bytes: &[u8]) -> Result<()> {
    match lfs_pointer(bytes) {
        Some(reason) => Err(Error::Malformed { file: name.to_owned(), offset: 0, reason }),
        None => Ok(()),
    }
}

/// A source over bytes in memory.
#[derive(Debug, Clone)]
pub struct MemorySource {
    name: String,
    bytes: Rc<[u8]>,
}

impl MemorySource {
    /// A source with `name` for messages.
    pub fn new(name: impl Into<String>, bytes: impl Into<Rc<[u8]>>) -> Self {
        Self { name: name.into(), bytes: bytes.into() }
    }
}

impl ByteSource for MemorySource {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read<'a>(&'a self, offset: u64, buffer: &'a mut [u8]) -> LocalFuture<'a, Result<()>> {
        Box::pin(async move {
            let range = usize::try_from(offset)
                .ok()
                .and_then(|start| Some(start..start.checked_add(buffer.len())?))
                .and_then(|range| self.bytes.get(range));
            let Some(bytes) = range else {
                let (length, size) = (buffer.len(), self.len());
                let reason = format!("reading {length} bytes at offset {offset}: there are only {size}");
                return Err(Error::Io { file: self.name.clone(), kind: ErrorKind::UnexpectedEof, reason });
            };
            buffer.copy_from_slice(bytes);
            Ok(())
        })
    }
}

/// A tree of named sources in memory, such as the files dropped on a web page.
#[derive(Clone, Default)]
pub struct MemoryFolder {
    path: String,
    files: Rc<BTreeMap<String, Rc<dyn ByteSource>>>,
}

impl MemoryFolder {
    /// The root of a tree. Each of `files` has its path relative to the root (`/` between parts) and its bytes.
    pub fn new<Path: Into<String>, Bytes: Into<Rc<[u8]>>>(files: impl IntoIterator<Item = (Path, Bytes)>) -> Self {
        Self::from_sources(files.into_iter().map(|(path, bytes)| {
            let path = path.into();
            (path.clone(), Rc::new(MemorySource::new(path, bytes)) as Rc<dyn ByteSource>)
        }))
    }

    /// As [`Self::new`], with any kind of source.
    pub fn from_sources(files: impl IntoIterator<Item = (String, Rc<dyn ByteSource>)>) -> Self {
        Self { path: String::new(), files: Rc::new(files.into_iter().collect()) }
    }

    fn resolve(&self, relative: &str) -> String {
        let mut parts: Vec<&str> = self.path.split('/').collect();
        for part in relative.split('/') {
            match part {
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        parts.retain(|part| !part.is_empty() && *part != ".");
        parts.join("/")
    }
}

impl Folder for MemoryFolder {
    fn name(&self) -> &str {
        if self.path.is_empty() { "(memory)" } else { &self.path }
    }

    fn open<'a>(&'a self, file: &'a str) -> LocalFuture<'a, Result<Option<Rc<dyn ByteSource>>>> {
        Box::pin(async move { Ok(self.files.get(&self.resolve(file)).cloned()) })
    }

    fn entries(&self) -> LocalFuture<'_, Vec<String>> {
        let inside = |path: &String| {
            let rest = path.strip_prefix(&self.path)?;
            let rest = if self.path.is_empty() { rest } else { rest.strip_prefix('/')? };
            rest.split('/').next().map(str::to_owned)
        };
        let mut names: Vec<String> = self.files.keys().filter_map(inside).collect();
        names.dedup();
        Box::pin(async { names })
    }

    fn child(&self, name: &str) -> Rc<dyn Folder> {
        Rc::new(Self { path: self.resolve(name), files: Rc::clone(&self.files) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memory_folder_resolves_paths() {
        let root = MemoryFolder::new([("a/b/file", vec![1u8, 2, 3])]);
        let folder = root.child("a/c").child("../b/.");
        assert_eq!(folder.name(), "a/b");
        let source = pollster::block_on(folder.open("./file")).unwrap().unwrap();
        assert_eq!((source.name(), source.len(), source.is_empty()), ("a/b/file", 3, false));
        let mut bytes = [0; 2];
        pollster::block_on(source.read(1, &mut bytes)).unwrap();
        assert_eq!(bytes, [2, 3]);
        assert!(pollster::block_on(source.read(2, &mut bytes)).is_err());
        assert!(pollster::block_on(source.read(u64::MAX, &mut bytes)).is_err());
        assert!(pollster::block_on(root.open("b/file")).unwrap().is_none());
        assert_eq!(pollster::block_on(root.entries()), ["a"]);
        assert_eq!(pollster::block_on(folder.entries()), ["file"]);
        assert!(pollster::block_on(root.child("x").entries()).is_empty());
        assert!(pollster::block_on(read_file(&root, "a/b/file", 2)).is_err());
    }
}
