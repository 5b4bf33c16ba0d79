//! `mgm pack`: a bundle gives the same answers as its checkpoint, opens in other libraries, and reports damage.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use safetensors::SafeTensors;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::common::{copy, expected, goldens, run_for, text};

fn mgm(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mgm"));
    command.args(arguments).stdin(Stdio::null()).output().expect("the binary runs")
}

fn must(arguments: &[&str]) -> String {
    let output = mgm(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Greedy ids of a case's first turn.
fn ids(model: &Path, case: &str, more: &[&str]) -> Vec<Value> {
    let expected = expected(case);
    let question = text(&expected["turns"][0]["question"]).to_owned();
    let images: Vec<PathBuf> = expected["images"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|image| goldens().join(case).join(text(image)))
        .collect();
    let mut arguments =
        vec!["chat", path(model), "--temperature", "0", "--max-new-tokens", "12", "--json", "--prompt", &question];
    for image in &images {
        arguments.extend(["--image", path(image)]);
    }
    arguments.extend(more);
    let report: Value = serde_json::from_str(&must(&arguments)).expect("JSON");
    report["turns"][0]["token_ids"].as_array().expect("ids").clone()
}

#[test]
fn a_bundle_gives_the_same_answers_as_its_checkpoint() {
    let folder = TempDir::new().expect("a folder");
    for case in ["gemma-2b", "mixtral-8x7b", "vicuna-7b"] {
        let expected = expected(case);
        let checkpoint = goldens().join(case).join(text(&expected["checkpoint"]));
        for precision in ["f32", "q4"] {
            let bundle = folder.path().join(format!("{case}-{precision}"));
            // Small shards, so that tensors span several of them.
            must(&[
                "pack",
                path(&checkpoint),
                "--precision",
                precision,
                "--out",
                path(&bundle),
                "--shard-size",
                "128K",
            ]);
            let found = ids(&bundle, case, &[]);
            if precision == "f32" {
                let golden = expected["turns"][0]["greedy_ids"].as_array().expect("ids");
                assert_eq!(found[..], golden[..found.len()], "{case}");
            }
            assert_eq!(found, ids(&checkpoint, case, &["--precision", precision]), "{case} at {precision}");
        }
    }
}

#[test]
fn files_match_the_manifest() {
    let folder = TempDir::new().expect("a folder");
    let bundle = folder.path().join("bundle");
    let checkpoint = goldens().join("gemma-2b/MGM-2B");
    must(&[
        "pack",
        path(&checkpoint),
        "--precision",
        "q8",
        "--out",
        path(&bundle),
        "--shard-size",
        "64K",
        "--name",
        "tiny",
    ]);
    let manifest: Value =
        serde_json::from_slice(&fs::read(bundle.join("bundle.json")).expect("a manifest")).expect("JSON");
    assert_eq!((text(&manifest["name"]), text(&manifest["precision"])), ("tiny", "q8"));
    let mut names = std::collections::BTreeMap::<String, usize>::new();
    for (list, shard) in [("files", false), ("shards", true)] {
        for entry in manifest[list].as_array().expect("a list") {
            let bytes = fs::read(bundle.join(text(&entry["file"]))).expect("a file");
            assert_eq!(bytes.len() as u64, entry["bytes"].as_u64().expect("a length"));
            let hash: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hash, text(&entry["sha256"]));
            if shard {
                // Any safetensors library opens a shard.
                assert!(bytes.len() <= 64 << 10, "{} is too large", text(&entry["file"]));
                for (name, tensor) in SafeTensors::deserialize(&bytes).expect("a safetensors file").iter() {
                    *names.entry(name.to_owned()).or_default() += tensor.shape()[0];
                }
            }
        }
    }
    assert_eq!(names["model.embed_tokens.weight"], 639, "all rows of a table that spans several shards");
    assert!(manifest["quantised"]["model.layers.0.mlp.down_proj.weight"] == "Q8_0");
}

/// As `chat` reports it before it loads weights.
#[test]
fn broken_templates_are_reported_before_packing() {
    let folder = TempDir::new().expect("a folder");
    // A language model alone: Mini-Gemini's templates are built in.
    let model = folder.path().join("model");
    copy(&goldens().join("gemma-2b/MGM-2B"), &model);
    let config = fs::read(model.join("config.json")).expect("a configuration");
    let mut config: Value = serde_json::from_slice(&config).expect("JSON");
    config["model_type"] = "gemma".into();
    config.as_object_mut().expect("an object").retain(|key, _| !key.starts_with("mm_") && key != "image_size_aux");
    fs::write(model.join("config.json"), config.to_string()).expect("written");
    let template = model.join("chat_template.jinja");
    fs::write(&template, "{{ messages[0].content }}\n{% if %}").expect("written");

    let gguf = folder.path().join("broken.gguf");
    let mut bytes = fs::read(mgm_test_support::data("gguf").join("llama.gguf")).expect("a file");
    let start = b"{% for message in messages %}";
    let at = bytes.windows(start.len()).position(|window| window == start).expect("a template");
    bytes[at..at + start.len()].copy_from_slice(b"{% for message of messages %}");
    fs::write(&gguf, bytes).expect("written");

    let out = folder.path().join("bundle");
    for (model, place) in [(&model, "chat_template.jinja: line 2"), (&gguf, "tokenizer.chat_template, line 1")] {
        let refused = mgm(&["pack", path(model), "--out", path(&out)]);
        let errors = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && errors.contains(place), "{errors}");
        assert!(!out.exists());
        let shown = must(&["inspect", path(model)]);
        assert!(shown.contains("conversation template: ") && shown.contains(place), "{shown}");
    }
    // One question is enough.
    fs::write(&template, "{% if messages | length > 1 %}{{ raise_exception('one turn') }}{% endif %}a")
        .expect("written");
    assert!(must(&["inspect", path(&model)]).contains("the model's own; the model's template takes one question"));
    let packed = mgm(&["pack", path(&model), "--out", path(&out)]);
    let notes = String::from_utf8_lossy(&packed.stderr);
    assert!(packed.status.success() && notes.contains("one question") && notes.contains("one turn"), "{notes}");
}

#[test]
fn damaged_bundles_are_refused_with_a_reason() {
    let folder = TempDir::new().expect("a folder");
    let checkpoint = goldens().join("no-image").join(text(&expected("no-image")["checkpoint"]));
    let good = folder.path().join("good");
    must(&["pack", path(&checkpoint), "--out", path(&good)]);
    let manifest = fs::read_to_string(good.join("bundle.json")).expect("a manifest");
    let shard = "model-00002-of-00002.safetensors";
    let weights = fs::read(good.join(shard)).expect("a shard");
    type Damage<'a> = Box<dyn Fn(&Path) + 'a>;
    let cases: [(&str, Damage, &str); 8] = [
        ("again", Box::new(|_| ()), "already holds a bundle"),
        ("missing shard", Box::new(|bundle| fs::remove_file(bundle.join(shard)).expect("removed")), "is missing"),
        (
            "truncated",
            Box::new(|bundle| fs::write(bundle.join(shard), &weights[..weights.len() / 2]).expect("written")),
            "bundle.json says",
        ),
        (
            "version",
            Box::new(|bundle| write(bundle, &manifest.replace("\"version\": 1", "\"version\": 7"))),
            "bundle version",
        ),
        ("name", Box::new(|bundle| write(bundle, &manifest.replace(shard, "../x"))), "not a valid file name"),
        ("type", Box::new(|bundle| write(bundle, &manifest.replace("\"Q4_1\"", "\"Q9\""))), "Q9"),
        ("blocks", Box::new(|bundle| write(bundle, &manifest.replace("\"Q4_1\"", "\"Q6_K\""))), "whole Q6_K blocks"),
        ("not JSON", Box::new(|bundle| write(bundle, "{")), "bundle.json"),
    ];
    for (case, damage, reason) in cases {
        let bundle = folder.path().join(case);
        fs::create_dir(&bundle).expect("a folder");
        for entry in fs::read_dir(&good).expect("a folder") {
            let entry = entry.expect("an entry");
            fs::copy(entry.path(), bundle.join(entry.file_name())).expect("a copy");
        }
        damage(&bundle);
        let output = if case == "again" {
            mgm(&["pack", path(&checkpoint), "--out", path(&bundle)])
        } else {
            mgm(&["chat", path(&bundle), "--prompt", "Hello"])
        };
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{case}: {message}");
        assert!(message.contains(reason) && !message.contains("panicked"), "{case}: {message}");
    }
}

fn write(bundle: &Path, manifest: &str) {
    fs::write(bundle.join("bundle.json"), manifest).expect("written");
}

/// A disk that is full when the manifest is written, and a second pack into the same folder.
#[cfg(unix)]
#[test]
fn a_manifest_is_complete_or_absent() {
    let folder = TempDir::new().expect("a folder");
    let case = "gemma-2b";
    let checkpoint = goldens().join(case).join(text(&expected(case)["checkpoint"]));
    let bundle = folder.path().join("bundle");
    fs::create_dir(&bundle).expect("a folder");
    // A device in its place. Full disks are in `faults`.
    std::os::unix::fs::symlink("/dev/full", bundle.join("bundle.json.part")).expect("a link");
    let arguments = ["pack", path(&checkpoint), "--out", path(&bundle)];
    let output = mgm(&arguments);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("bundle.json") && error.contains("not a regular file"), "{error}");
    assert!(!bundle.join("bundle.json").exists());

    // A longer manifest of an interrupted run is overwritten whole.
    fs::remove_file(bundle.join("bundle.json.part")).expect("the link");
    fs::write(bundle.join("bundle.json.part"), vec![b'x'; 1 << 20]).expect("a file");
    must(&arguments);
    assert!(!bundle.join("bundle.json.part").exists());
    let manifest = fs::read(bundle.join("bundle.json")).expect("a manifest");
    serde_json::from_slice::<Value>(&manifest).expect("JSON");
    let error = String::from_utf8_lossy(&mgm(&arguments).stderr).into_owned();
    assert!(error.contains("already holds a bundle"), "{error}");

    // While one pack writes, another one is refused.
    let shared = folder.path().join("shared");
    let pack = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mgm"));
        command.args(["pack", path(&checkpoint), "--out", path(&shared)]).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs")
    };
    let outputs: Vec<Output> =
        [pack(), pack(), pack()].into_iter().map(|child| child.wait_with_output().expect("the end")).collect();
    let succeeded = outputs.iter().filter(|output| output.status.success()).count();
    assert_eq!(succeeded, 1, "{outputs:?}");
    for entry in fs::read_dir(&shared).expect("a folder").flatten() {
        let (alone, here) = (fs::read(bundle.join(entry.file_name())), fs::read(entry.path()));
        assert!(alone.expect("the same files") == here.expect("a file"), "{:?}", entry.file_name());
    }
}

/// Kills at different moments, and a disk on which no file may grow beyond 50 KB: a folder with a manifest is a whole
/// bundle, and the next run writes the same one as a run alone.
#[cfg(unix)]
#[test]
fn an_interrupted_pack_is_repeated_whole() {
    let folder = TempDir::new().expect("a folder");
    let case = "gemma-2b";
    let checkpoint = goldens().join(case).join(text(&expected(case)["checkpoint"]));
    let (alone, killed, full) = (folder.path().join("alone"), folder.path().join("killed"), folder.path().join("full"));
    must(&["pack", path(&checkpoint), "--out", path(&alone)]);
    let assert_same = |bundle: &Path| {
        for entry in fs::read_dir(&alone).expect("a folder").flatten() {
            let (expected, found) = (fs::read(entry.path()), fs::read(bundle.join(entry.file_name())));
            assert!(expected.expect("a file") == found.expect("the same files"), "{:?}", entry.file_name());
        }
    };
    let mut kills = 0;
    for round in 0.. {
        let mut pack = Command::new(env!("CARGO_BIN_EXE_mgm"));
        pack.args(["pack", path(&checkpoint), "--out", path(&killed)]).stdin(Stdio::null()).stdout(Stdio::null());
        let status = run_for(&mut pack, Duration::from_millis(1 + 2 * round));
        if killed.join("bundle.json").exists() {
            assert_same(&killed);
            break;
        }
        assert!(status.is_none(), "a pack that failed");
        kills += 1;
    }
    assert!(kills >= 3, "{kills} kills");
    let limited = format!("ulimit -f 100; exec \"$0\" pack \"{}\" --out \"{}\"", path(&checkpoint), path(&full));
    let output = Command::new("sh").args(["-c", &limited, env!("CARGO_BIN_EXE_mgm")]).output().expect("a shell");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains(path(&full)) && !full.join("bundle.json").exists(), "{error}");
    must(&["pack", path(&checkpoint), "--out", path(&full)]);
    assert_same(&full);
}
