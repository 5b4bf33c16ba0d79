//! Helpers for files that several commands use.

use std::ffi::OsString;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use mgm::Error;
use mgm::io::refuse_lfs_pointer_in;

/// [`Error::Io`] with the path of the file.
pub fn io_error(path: &Path, error: impl Into<std::io::Error>) -> Error {
    Error::io(path.display().to_string(), &error.into())
}

/// The most bytes that are read from a pipe or a device, which need not end.
const MAX_SPECIAL: u64 = 1 << 30;

/// Reads a file, or a pipe to its end.
///
/// # Errors
/// [`Error::MissingFile`], [`Error::Io`]; [`Error::Malformed`] if it is a Git LFS pointer.
pub fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let read = || {
        let mut file = File::open(path)?;
        let limit = if file.metadata()?.is_file() { u64::MAX } else { MAX_SPECIAL };
        let mut bytes = Vec::new();
        (&mut file).take(limit).read_to_end(&mut bytes)?;
        if bytes.len() as u64 == limit && file.read(&mut [0])? > 0 {
            return Err(std::io::Error::new(
                ErrorKind::FileTooLarge,
                format!("not a file, and more than {limit} bytes"),
            ));
        }
        Ok(bytes)
    };
    let bytes = read().map_err(|error| match error.kind() {
        ErrorKind::NotFound => {
            Error::MissingFile { file: path.display().to_string(), hint: "check the path".to_owned() }
        }
        _ => io_error(path, error),
    })?;
    refuse_lfs_pointer_in(&path.display().to_string(), &bytes)?;
    Ok(bytes)
}

/// Refuses what is neither a regular file nor a folder nor absent: opening a pipe waits for its other end.
///
/// # Errors
/// [`ErrorKind::InvalidInput`].
pub fn refuse_special(path: &Path) -> std::io::Result<()> {
    if std::fs::metadata(path).is_ok_and(|there| !there.is_file() && !there.is_dir()) {
        let reason = "this is not a regular file but a pipe, a socket or a device";
        return Err(std::io::Error::new(ErrorKind::InvalidInput, reason));
    }
    Ok(())
}

/// Reads a regular file.
///
/// # Errors
/// The system's, and [`refuse_special`]'s.
pub fn read_regular(path: &Path) -> std::io::Result<Vec<u8>> {
    refuse_special(path)?;
    std::fs::read(path)
}

/// Hashes everything that `reader` has left. `on_progress` receives the bytes since the last call.
pub fn hash(hasher: &mut impl sha2::Digest, reader: &mut impl Read, on_progress: impl Fn(u64)) -> std::io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => {
                hasher.update(&buffer[..count]);
                on_progress(count as u64);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The user's folder, from the environment that `variable` reads: `HOME`, or on Windows `USERPROFILE`.
pub fn home(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let set = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("HOME").or_else(|| if cfg!(windows) { set("USERPROFILE") } else { None })
}

/// A path in which `~` alone, or before a slash, is the home folder.
pub fn with_home(path: &str, home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix('~'), home) {
        (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with(['/', '\\']) => {
            home.join(rest.trim_start_matches(['/', '\\']))
        }
        _ => PathBuf::from(path),
    }
}

/// Bytes in hexadecimal. (sha2 0.11 no longer formats digests; a crate would be a dependency for one line.)
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The name under which this process writes the file at `path`.
pub fn part_of(path: &Path) -> PathBuf {
    let mut part = path.as_os_str().to_owned();
    part.push(format!(".{}.part", std::process::id()));
    part.into()
}

/// Writes a file under a temporary name and renames it, so that a reader finds the old content or the new one, whatever
/// interrupts the write.
pub fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let part = part_of(path);
    let written = File::create(&part).and_then(|mut file| {
        file.write_all(bytes)?;
        // The system may report a full disk only here.
        file.sync_all()
    });
    written.and_then(|()| std::fs::rename(&part, path)).inspect_err(|_| drop(std::fs::remove_file(&part)))
}
