//! Progress bars on standard error, hidden if it is not a terminal.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar that counts bytes.
pub fn bytes(total: u64, message: &str) -> ProgressBar {
    bar(total, message, "{msg:>9} {bar:32} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
}

/// A bar that counts anything else.
pub fn count(total: u64, message: &str) -> ProgressBar {
    bar(total, message, "{msg:>9} {bar:32} {pos}/{len}")
}

fn bar(total: u64, message: &str, template: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total).with_style(style).with_message(message.to_owned())
}
