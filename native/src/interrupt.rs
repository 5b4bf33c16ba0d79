//! Handles Ctrl-C.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::CliError;

/// Makes Ctrl-C set a flag that running work polls. A second Ctrl-C before the flag is cleared
/// ends the program with exit code 130.
pub fn install() -> Result<Arc<AtomicBool>, CliError> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    })
    .map_err(|error| CliError::Output(std::io::Error::other(error)))?;
    Ok(stop)
}

/// Returns what a callback of the core should return: `Break` if `stop` is set.
pub fn continue_unless(stop: &AtomicBool) -> ControlFlow<()> {
    if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}
