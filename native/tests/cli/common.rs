//! What several test files need.
#![allow(dead_code)]

use std::fs;
use std::path::Path;

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
