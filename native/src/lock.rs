//! Locks that processes hold on files. The system releases them however a process ends.

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::time::{Duration, Instant};

use fs4::{FileExt, TryLockError};
use mgm::Result;

use crate::files::{io_error, refuse_special};

/// How long to wait before a message says so. Threads of one process wait for one another too, briefly.
const PATIENCE: Duration = Duration::from_secs(2);
const INTERVAL: Duration = Duration::from_millis(50);

/// Opens or creates a file to append to (and to read) and locks it. `on_wait` is called once if another process holds
/// it for long.
///
/// # Errors
/// [`mgm::Error::Io`], also if the path is no regular file.
pub fn open_locked(path: &Path, on_wait: impl Fn()) -> Result<File> {
    let open = || {
        refuse_special(path)?;
        OpenOptions::new().create(true).append(true).read(true).open(path)
    };
    let mut on_wait = Some(on_wait);
    loop {
        let file = open().map_err(|error| io_error(path, error))?;
        wait(&file, &mut on_wait).map_err(|error| io_error(path, error))?;
        // The process that held the lock may have renamed or deleted the file: then this lock protects nothing.
        if is_at(&file, path) {
            return Ok(file);
        }
    }
}

fn wait(file: &File, on_wait: &mut Option<impl Fn()>) -> std::io::Result<()> {
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        match FileExt::try_lock(file) {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) => std::thread::sleep(INTERVAL),
            Err(TryLockError::Error(error)) => return without_locks(error),
        }
    }
    if let Some(on_wait) = on_wait.take() {
        on_wait();
    }
    FileExt::lock(file).or_else(without_locks)
}

/// Some file systems of networks have no locks. Downloads work there too, one process at a time.
fn without_locks(error: std::io::Error) -> std::io::Result<()> {
    const ENOLCK: i32 = 37;
    let unsupported = error.kind() == std::io::ErrorKind::Unsupported
        || cfg!(target_os = "linux") && error.raw_os_error() == Some(ENOLCK);
    if unsupported { Ok(()) } else { Err(error) }
}

/// Whether a path still names this file.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |metadata: &std::fs::Metadata| (metadata.dev(), metadata.ino());
    matches!((file.metadata(), path.metadata()), (Ok(ours), Ok(there)) if id(&ours) == id(&there))
}

#[cfg(not(unix))]
fn is_at(_: &File, path: &Path) -> bool {
    path.exists()
}
