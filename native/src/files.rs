//! Folders on disk as the core's [`Folder`] and [`ByteSource`].

use std::fs::File;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use mgm::weights::source::{ByteSource, Folder, LocalFuture};
use mgm::{Error, Result};

/// A folder on disk.
#[derive(Debug, Clone)]
pub struct DiskFolder {
    path: PathBuf,
    name: String,
}

impl DiskFolder {
    /// The folder at `path`, which need not exist yet: opening files in it will tell.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let name = path.display().to_string();
        Self { path, name }
    }
}

impl Folder for DiskFolder {
    fn name(&self) -> &str {
        &self.name
    }

    fn open<'a>(&'a self, file: &'a str) -> LocalFuture<'a, Result<Option<Rc<dyn ByteSource>>>> {
        Box::pin(async move {
            let path = self.path.join(file);
            match DiskFile::open(&path) {
                Ok(source) => Ok(Some(Rc::new(source) as Rc<dyn ByteSource>)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(io_error(&path, error)),
            }
        })
    }

    fn child(&self, name: &str) -> Rc<dyn Folder> {
        Rc::new(DiskFolder::new(self.path.join(name)))
    }
}

/// One file on disk, read at offsets.
#[derive(Debug)]
pub struct DiskFile {
    file: File,
    name: String,
    length: u64,
}

impl DiskFile {
    /// Opens a regular file for reading.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if metadata.is_dir() {
            return Err(std::io::Error::new(std::io::ErrorKind::NotFound, "this is a folder, not a file"));
        }
        Ok(Self { file, name: path.display().to_string(), length: metadata.len() })
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
            read_exact_at(&self.file, buffer, offset).map_err(|error| Error::Io {
                file: self.name.clone(),
                reason: format!("reading {} bytes at offset {offset}: {error}", buffer.len()),
            })
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
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            read => {
                buffer = &mut buffer[read..];
                offset += read as u64;
            }
        }
    }
    Ok(())
}

/// What went wrong with a file.
pub fn io_error(path: &Path, error: impl std::fmt::Display) -> Error {
    Error::Io { file: path.display().to_string(), reason: error.to_string() }
}

/// Bytes in hexadecimal, as checksums are written.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
