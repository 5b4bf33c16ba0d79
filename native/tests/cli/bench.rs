//! `mgm bench` and `mgm tune`: their output and what they cache. Speed is measured in benches/.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

fn data(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/gguf").join(file)
}

/// Runs the binary with its own cache folder and returns its standard output.
fn mgm(cache: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mgm"));
    command.args(arguments).env("XDG_CACHE_HOME", cache).env("HOME", cache).stdin(Stdio::null());
    let output = command.output().expect("the binary runs");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn json(text: &str) -> Value {
    serde_json::from_str(text.trim()).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Files under a folder whose paths end with `end`.
fn files(folder: &Path, end: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path, end));
        } else if path.to_string_lossy().ends_with(end) {
            found.push(path);
        }
    }
    found
}

#[test]
fn a_gguf_file_is_measured_and_tuning_is_cached() {
    let cache = TempDir::new().expect("a temporary folder");
    let model = data("llama.gguf");
    let model = model.to_str().expect("UTF-8");
    let bench = || {
        json(&mgm(
            cache.path(),
            &["bench", "--gguf", model, "--prefill", "20", "--decode", "5", "--runs", "1", "--json"],
        ))
    };
    let report = bench();
    for key in ["prefill_tokens_per_s", "decode_tokens_per_s", "load_ms", "weights_mib", "dispatches_per_token"] {
        assert!(report[key].as_f64().is_some_and(|value| value > 0.0), "{key}: {report}");
    }
    assert_eq!(
        (&report["prefill_tokens"], &report["decode_tokens"], &report["tuned"]),
        (&20.into(), &5.into(), &0.into())
    );
    // Host memory that loading adds to the weights, where the system reports it.
    if cfg!(target_os = "linux") {
        assert!(report["load_host_mib"].as_f64().is_some_and(|mib| mib < 64.0), "{report}");
    }

    let printed = mgm(cache.path(), &["tune", model, "--int8"]);
    let cached = files(cache.path(), "tuning.json");
    assert_eq!(cached.len(), 1, "{printed}");
    let shapes =
        json(&std::fs::read_to_string(&cached[0]).expect("a file"))["products"].as_array().expect("a list").len();
    assert!(shapes > 0 && printed.contains(&format!("measured {shapes} matmul shapes")), "{printed}");
    assert_eq!(bench()["tuned"], shapes);
}

#[test]
fn the_roofline_of_some_kernels() {
    let cache = TempDir::new().expect("a temporary folder");
    let report = json(&mgm(cache.path(), &["bench", "--roofline", "--only", "norm 577", "--json"]));
    assert!(report["read_gigabytes_per_s"].as_f64().is_some_and(|rate| rate > 0.0), "{report}");
    let rows = report["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 1, "{report}");
    // 577 x 1024 values in and out, and the weight and bias.
    let megabytes = rows[0]["megabytes"].as_f64().expect("megabytes");
    assert!((megabytes - (2 * 577 + 2) as f64 * 4096.0 / 1e6).abs() < 0.01, "{report}");
}
