//! `mgm bench` and `mgm tune`: their output and what they cache. Speed is measured in benches/.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

fn data(file: &str) -> PathBuf {
    mgm_test_support::data("gguf").join(file)
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

    // A conversation template is not needed.
    let mut bytes = std::fs::read(model).expect("a file");
    let key = b"tokenizer.chat_template";
    let at = bytes.windows(key.len()).position(|window| window == key).expect("a template");
    bytes[at..at + key.len()].copy_from_slice(b"tokenizer.chat_templatX");
    let bare = cache.path().join("bare.gguf");
    std::fs::write(&bare, bytes).expect("a file");

    let printed = mgm(cache.path(), &["tune", bare.to_str().expect("UTF-8"), "--int8"]);
    let cached = files(cache.path(), "tuning.json");
    assert_eq!(cached.len(), 1, "{printed}");
    let shapes =
        json(&std::fs::read_to_string(&cached[0]).expect("a file"))["products"].as_array().expect("a list").len();
    assert!(shapes > 0 && printed.contains(&format!("measured {shapes} matmul shapes")), "{printed}");
    assert_eq!(bench()["tuned"], shapes);
}

/// Kernels are measured at a model's first load on a GPU. A software adapter is none, with `--no-tune` or without.
/// What the figures are is measured on real models; here only that all of it ran.
#[test]
fn many_sequences_are_measured_as_ratios() {
    let cache = TempDir::new().expect("a temporary folder");
    let model = data("llama.gguf");
    let arguments = ["bench", "--engine", "--gguf", model.to_str().expect("UTF-8"), "--prefill", "40", "--decode", "6"];
    let report = json(&mgm(cache.path(), &[&arguments[..], &["--json"]].concat()));
    for key in [
        "conversation_tokens_per_s",
        "dispatches_per_step",
        "batching",
        "single",
        "second_question",
        "cancellation_steps",
        "continuous",
        "drafts_copying",
        "drafts_random",
    ] {
        assert!(report[key].as_f64().is_some_and(|value| value > 0.0), "{key}: {report}");
    }
    for key in ["second_question_about_image", "same_image_in_other_prompt"] {
        assert!(report[key].is_null(), "a language model has no images: {report}");
    }
    assert!(report["drafts_accepted"].as_f64().is_some_and(|part| (0.0..=1.0).contains(&part)), "{report}");
}

#[test]
fn software_adapters_are_not_measured_when_a_model_is_loaded() {
    let cache = TempDir::new().expect("a temporary folder");
    let model = data("llama.gguf");
    let arguments = ["chat", model.to_str().expect("UTF-8"), "--prompt", "a", "--max-new-tokens", "1", "--no-tune"];
    for count in [arguments.len() - 1, arguments.len()] {
        mgm(cache.path(), &arguments[..count]);
        assert!(files(cache.path(), "tuning.json").is_empty(), "{arguments:?}");
    }
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

/// What a prediction counts, against the same by hand. Llama 7B: 32 layers of 4 x 4096 x 4096 and 3 x 4096 x 11008
/// weights, a head of 32000 x 4096, and keys and values of 640 tokens and this one.
#[test]
fn predictions_count_the_bytes_of_a_token() {
    let cache = TempDir::new().expect("a temporary folder");
    let report = json(&mgm(cache.path(), &["bench", "--predict", "rtx-4090", "--synthetic", "mgm-7b", "--json"]));
    let rows = report["rows"].as_array().expect("rows");
    let row = |engine: &str, part: &str| {
        rows.iter().find(|row| row["engine"] == engine && row["part"] == part).unwrap_or_else(|| panic!("{report}"))
    };
    let weights = 32.0 * (4.0 * 4096.0 * 4096.0 + 3.0 * 4096.0 * 11008.0);
    let head = 32000.0 * 4096.0;
    let cached = 32.0 * 641.0 * 2.0 * 4096.0 * 2.0;
    // Bits of a weight: q4 has two scales of 16 bits for 32, q8 one; Q4_0 one, Q6_K 210 bytes for 256.
    for (engine, bits, head_bits) in [("mgm", 5.0, 8.5), ("llama.cpp", 4.5, 6.5625)] {
        let expected = (weights * bits + head * head_bits) / 8.0 + cached;
        let found = row(engine, "token")["gigabytes"].as_f64().expect("gigabytes") * 1e9;
        // Activations are the rest.
        assert!((0.99..1.02).contains(&(found / expected)), "{engine}: {found}, expected {expected}");
        let flops = row(engine, "token")["gflop"].as_f64().expect("gflop") * 1e9;
        let expected = 2.0 * (weights + head) + 32.0 * 4.0 * 641.0 * 4096.0;
        assert!((flops / expected - 1.0).abs() < 0.01, "{engine}: {flops} flop, expected {expected}");
    }
    // No device reads faster than its published bandwidth, and every share of the time is of 100 %.
    for row in rows {
        let number = |key: &str| row[key].as_f64().unwrap_or_else(|| panic!("{key}: {row}"));
        assert!(number("gigabytes") / number("milliseconds") < 1.008, "{row}");
        let percent: f64 = row["percent"].as_object().expect("shares").values().filter_map(Value::as_f64).sum();
        assert!((percent - 100.0).abs() < 0.01 && number("counted_percent") > 99.0, "{row}");
    }
}

#[test]
fn devices_are_listed() {
    let cache = TempDir::new().expect("a temporary folder");
    let listed = mgm(cache.path(), &["bench", "--predict"]);
    assert!(listed.lines().count() == 20 && listed.contains("rtx-4090     NVIDIA RTX 4090"), "{listed}");
    let listed = json(&mgm(cache.path(), &["bench", "--predict", "--json"]));
    let devices = listed.as_array().expect("a list");
    assert_eq!(devices.len(), 20);
    assert!(devices.contains(&serde_json::json!({ "name": "rtx-4090", "title": "NVIDIA RTX 4090 (Ada)" })), "{listed}");
}
