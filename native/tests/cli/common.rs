//! What several test files need.
#![allow(dead_code)]

use std::fs;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use serde_json::Value;

pub use mgm_test_support::goldens;

/// A case's `expected.json`.
pub fn expected(case: &str) -> Value {
    let file = goldens().join(case).join("expected.json");
    serde_json::from_slice(&fs::read(file).expect("expected.json")).expect("JSON")
}

/// A string of it.
pub fn text(value: &Value) -> &str {
    value.as_str().expect("a string")
}

/// A copy of a folder and all in it.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder to copy") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("a copy");
        }
    }
}

/// Runs a command to its end. Returns its peak memory in MiB, as the kernel counts it.
#[cfg(target_os = "linux")]
pub fn peak_memory(command: &mut Command) -> u64 {
    let mut child = command.spawn().expect("the binary runs");
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    let ended = loop {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let found = text.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix("kB"));
        peak = found.and_then(|kilobytes| kilobytes.trim().parse().ok()).unwrap_or(0).max(peak);
        if let Some(ended) = child.try_wait().expect("a status") {
            break ended;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    assert!(ended.success(), "{command:?}: {ended}");
    peak >> 10
}

/// Runs a command, but kills it after this time: then `None`.
pub fn run_for(command: &mut Command, time: Duration) -> Option<ExitStatus> {
    let mut child = command.spawn().expect("the binary runs");
    let deadline = Instant::now() + time;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().expect("a status") {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().expect("a kill");
    child.wait().expect("the end");
    None
}
