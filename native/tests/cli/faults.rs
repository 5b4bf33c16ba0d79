//! Faults of the system: interrupts and kills, folders that cannot be written to, drivers that lack what they should
//! have.
#![cfg(unix)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

fn mgm() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mgm"));
    command.stdin(Stdio::null());
    command
}

fn run(command: &mut Command) -> Output {
    command.output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Products in the tuning file of a cache folder.
fn tuned(cache: &Path) -> usize {
    let files = fs::read_dir(cache.join("mgm")).expect("a cache").flatten().map(|entry| entry.path());
    let tuning = files.into_iter().find(|path| path.to_string_lossy().ends_with("tuning.json")).expect("a tuning file");
    let tuning: Value = serde_json::from_slice(&fs::read(tuning).expect("a file")).expect("JSON");
    tuning["products"].as_array().expect("a list").len()
}

#[test]
fn an_interrupted_or_killed_tune_keeps_what_it_measured() {
    for signal in ["INT", "KILL"] {
        let cache = TempDir::new().expect("a folder");
        let mut tune = mgm();
        tune.args(["tune"]).env("XDG_CACHE_HOME", cache.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut tune = tune.spawn().expect("the binary runs");
        let mut lines = BufReader::new(tune.stdout.take().expect("a pipe")).lines();
        lines.next().expect("an adapter").expect("a line");
        // Each line ends in a time in microseconds and a kernel; before them is the product.
        let mut products = BTreeSet::new();
        while products.len() < 3 {
            let line = lines.next().expect("a third product").expect("a line");
            products.insert(line.split_whitespace().take(6).collect::<Vec<_>>().join(" "));
        }
        let pid = tune.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &pid]).status().expect("kill").success());
        let printed: Vec<String> = lines.map_while(Result::ok).collect();
        let mut errors = String::new();
        tune.stderr.take().expect("a pipe").read_to_string(&mut errors).expect("UTF-8");
        let status = tune.wait().expect("the end");
        assert!(tuned(cache.path()) >= 2, "{printed:?}");
        if signal == "INT" {
            assert_eq!(status.code(), Some(130), "{errors}");
            assert!(printed.last().is_some_and(|line| line.starts_with("stopped; measured")), "{printed:?}");
            assert!(errors.contains("cancelled"), "{errors}");
        }
    }
}

#[test]
fn tune_checks_its_cache_before_it_measures() {
    // A file is no folder to write to, for root neither.
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("file");
    fs::write(&file, "x").expect("a file");
    let output = run(mgm().arg("tune").env("XDG_CACHE_HOME", &file));
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
    assert!(errors.contains("tuning.json") && errors.contains("XDG_CACHE_HOME"), "{errors}");
}

#[test]
fn drivers_that_the_environment_hides_are_named() {
    for name in ["VK_ICD_FILENAMES", "VK_DRIVER_FILES"] {
        let output = run(mgm().arg("info").env_remove("VK_DRIVER_FILES").env(name, "/nowhere/icd.json"));
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{errors}");
        assert!(errors.contains(name) && errors.contains("there is no /nowhere/icd.json"), "{errors}");
    }
}

/// llvmpipe on a processor without F16C cannot convert f16. On other adapters the variable has no effect.
#[test]
fn a_driver_without_f16_conversions_gives_the_same_answers() {
    let output = run(mgm().arg("doctor").env("GALLIUM_OVERRIDE_CPU_CAPS", "sse2"));
    let printed = text(&output.stdout);
    assert!(output.status.success(), "{printed}{}", text(&output.stderr));
    let mut chat = mgm();
    chat.args(["chat", "--temperature", "0", "--prompt", "What is this?", "--image"]);
    chat.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../pocket/examples/shark.png"));
    let plain = text(&run(&mut chat).stdout);
    let output = run(chat.env("GALLIUM_OVERRIDE_CPU_CAPS", "sse2"));
    assert_eq!(text(&output.stdout), plain, "{}", text(&output.stderr));
    assert!(plain.contains("shark"), "{plain}");
    // The note is there if the variable has an effect.
    assert_eq!(text(&output.stderr).contains("cannot convert f16"), printed.contains("cannot convert f16"));
}
