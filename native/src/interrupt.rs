//! Handles Ctrl-C, and the signal of writes beyond a limit.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::CliError;

/// Exit code after Ctrl-C, as a shell reports it.
pub const INTERRUPTED: u8 = 130;

/// Whether Ctrl-C ends the program at once: nothing runs that polls the flag.
static IDLE: AtomicBool = AtomicBool::new(false);

/// Makes Ctrl-C set a flag that running work polls. A second Ctrl-C before the flag is cleared, or one while nothing
/// runs ([`exit_while`]), ends the program with exit code 130.
///
/// Only the reader of an interactive conversation clears the flag, after it reported the stop: one that comes between
/// two pieces of work is not lost.
pub fn install() -> Result<Arc<AtomicBool>, CliError> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) || IDLE.load(Ordering::Relaxed) {
            std::process::exit(INTERRUPTED.into());
        }
    })
    .map_err(|error| CliError::Output(std::io::Error::other(error)))?;
    Ok(stop)
}

/// Lets a write beyond the limit of `ulimit -f` fail with an error, which names the file. By default the signal ends
/// the program.
pub fn ignore_file_size_signal() {
    #[cfg(unix)]
    // SAFETY: this sets no handler, and the main thread calls it before there are others.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

/// Runs something that does not poll the flag: meanwhile Ctrl-C ends the program.
pub fn exit_while<T>(wait: impl FnOnce() -> T) -> T {
    IDLE.store(true, Ordering::Relaxed);
    let result = wait();
    IDLE.store(false, Ordering::Relaxed);
    result
}

/// Returns what a callback of the core should return: `Break` if `stop` is set.
pub fn continue_unless(stop: &AtomicBool) -> ControlFlow<()> {
    if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}
