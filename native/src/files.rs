//! Helpers for files that several commands use.

use std::io::ErrorKind;
use std::path::Path;

use mgm::Error;

/// [`Error::Io`] with the path of the file.
pub fn io_error(path: &Path, error: impl Into<std::io::Error>) -> Error {
    Error::io(path.display().to_string(), &error.into())
}

/// Reads a file.
///
/// # Errors
/// [`Error::MissingFile`], [`Error::Io`].
pub fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => {
            Error::MissingFile { file: path.display().to_string(), hint: "check the path".to_owned() }
        }
        _ => io_error(path, error),
    })
}

/// Bytes in hexadecimal. (sha2 0.11 no longer formats digests; a crate would be a dependency for one line.)
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
