//! `mgm pull` against a local hub that drops connections, corrupts bytes, is busy, and redirects: the downloaded model
//! gives the expected answers.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use serde_json::Value;
use tempfile::TempDir;

use crate::hub::{Faults, Hub, error_of, files, golden, hub, is_weights, must};

/// Asserts that the files of the model and both towers are complete.
fn assert_complete(out: &Path) {
    for (name, bytes) in files(&golden().join("MGM-2B")) {
        assert!(fs::read(out.join("MGM-2B").join(&name)).expect(&name) == bytes, "{name} differs");
    }
    for tower in fs::read_dir(golden().join("OpenAI")).expect("towers").flatten() {
        for (name, bytes) in files(&tower.path()) {
            let path = out.join("OpenAI").join(tower.file_name()).join(&name);
            assert!(fs::read(&path).expect(&name) == bytes, "{} differs", path.display());
        }
    }
}

fn no_parts(folder: &Path) -> bool {
    files(folder).keys().all(|name| !name.ends_with(".part"))
}

/// Asks `mgm chat` of the golden model its first question.
pub fn answers_as_expected(chat: &mut Command) {
    let expected: Value =
        serde_json::from_slice(&fs::read(golden().join("expected.json")).expect("a file")).expect("JSON");
    let turn = &expected["turns"][0];
    chat.args(["--precision", "f32", "--temperature", "0", "--json", "--max-new-tokens", "8", "--prompt"]);
    chat.arg(turn["question"].as_str().expect("a question")).arg("--image").arg(golden().join("image0.png"));
    let report: Value = serde_json::from_str(&must(&chat.output().expect("the binary runs"))).expect("JSON");
    let ids = report["turns"][0]["token_ids"].as_array().expect("ids");
    let greedy = turn["greedy_ids"].as_array().expect("greedy_ids");
    assert_eq!(ids[..], greedy[..ids.len()]);
}

#[test]
fn a_model_and_its_towers_arrive_and_answer() {
    let (hub, out) = (hub(), TempDir::new().expect("a folder"));
    let printed = must(&hub.pull(out.path(), &["someone/MGM-2B"]));
    for part in ["someone/MGM-2B", "openai/clip-vit", "mgm chat"] {
        assert!(printed.contains(part), "{printed}");
    }
    assert_complete(out.path());
    let model = out.path().join("MGM-2B");
    for unwanted in ["README.md", "training_args.bin", ".gitattributes"] {
        assert!(!model.join(unwanted).exists(), "{unwanted} was pulled");
    }
    assert!(!out.path().join("OpenAI/clip-vit-large-patch14-336/tf_model.h5").exists());
    // The token is sent to the hub, but not to redirect targets.
    for (path, _, token) in hub.log() {
        assert_eq!(token.is_none(), path.starts_with("/cdn/"), "{path} with {token:?}");
    }

    answers_as_expected(Command::new(env!("CARGO_BIN_EXE_mgm")).arg("chat").arg(&model));

    // A second pull only requests the listings.
    hub.misbehave(Faults::default());
    must(&hub.pull(out.path(), &["someone/MGM-2B"]));
    assert!(hub.log().iter().all(|(path, ..)| path.starts_with("/api/")), "{:?}", hub.log());
    // A file damaged on disk is replaced.
    let weights = files(&model).into_keys().find(|name| name.ends_with(".safetensors")).expect("weights");
    let mut bytes = fs::read(model.join(&weights)).expect("a file");
    bytes[100] ^= 1;
    fs::write(model.join(&weights), bytes).expect("a file");
    must(&hub.pull(out.path(), &["someone/MGM-2B"]));
    assert_complete(out.path());
}

#[test]
fn a_diffusers_model_arrives_without_the_files_of_other_programs() {
    let (hub, out) = (hub(), TempDir::new().expect("a folder"));
    let model = mgm_test_support::goldens().join("sdxl-base/sdxl");
    let mut repo = BTreeMap::from([("sd_xl_base_1.0.safetensors".to_owned(), vec![1; 100])]);
    let mut expected = vec!["model_index.json".to_owned()];
    repo.insert(expected[0].clone(), fs::read(model.join("model_index.json")).expect("a file"));
    for folder in fs::read_dir(&model).expect("a folder").flatten().filter(|entry| entry.path().is_dir()) {
        let folder_name = folder.file_name().into_string().expect("UTF-8");
        for (name, bytes) in files(&folder.path()) {
            let name = format!("{folder_name}/{name}");
            // Of the autoencoder the repository has an f16 variant too, which is preferred.
            if name.starts_with("vae/") && is_weights(&name) {
                repo.insert(name.clone(), vec![2; 100]);
                let variant = name.replace(".safetensors", ".fp16.safetensors");
                repo.insert(variant.clone(), bytes);
                expected.push(variant);
                continue;
            }
            repo.insert(name.clone(), bytes);
            expected.push(name);
        }
    }
    for unwanted in [
        "unet/openvino_model.bin",
        "vae/diffusion_pytorch_model.bin",
        "vae_1_0/config.json",
        "text_encoder/flax_model.msgpack",
    ] {
        repo.insert(unwanted.to_owned(), vec![3; 100]);
    }
    hub.state.lock().expect("the state").repos.insert("someone/sdxl".to_owned(), repo);
    let printed = must(&hub.pull(out.path(), &["someone/sdxl"]));
    assert!(printed.contains("try: mgm generate"), "{printed}");
    let pulled = out.path().join("sdxl");
    let mut found: Vec<String> = fs::read_dir(&pulled)
        .expect("a folder")
        .flatten()
        .flat_map(|entry| {
            let name = entry.file_name().into_string().expect("UTF-8");
            if entry.path().is_file() {
                return vec![name];
            }
            files(&entry.path()).into_keys().map(|file| format!("{name}/{file}")).collect()
        })
        .collect();
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
    let inspect = Command::new(env!("CARGO_BIN_EXE_mgm")).arg("inspect").arg(&pulled).output();
    assert!(must(&inspect.expect("the binary runs")).contains("Stable Diffusion XL"));
}

#[test]
fn a_vision_tower_alone_is_no_chat_model() {
    let (hub, out) = (hub(), TempDir::new().expect("a folder"));
    let printed = must(&hub.pull(out.path(), &["openai/clip-vit-large-patch14-336"]));
    assert!(printed.contains("clip-vit") && !printed.contains("try:"), "{printed}");
}

#[test]
fn broken_connections_and_busy_servers_are_retried() {
    let cases = [
        Faults { cut_after: Some(300_000), ..Faults::default() },
        Faults { busy: 2, ..Faults::default() },
        Faults { corrupt: 2, ..Faults::default() },
        Faults { no_ranges: true, ..Faults::default() },
        Faults { no_checksums: true, ..Faults::default() },
    ];
    let hub = hub();
    for faults in cases {
        let out = TempDir::new().expect("a folder");
        hub.misbehave(faults);
        let printed = must(&hub.pull(out.path(), &["someone/MGM-2B", "--connections", "2"]));
        assert_complete(out.path());
        assert!(no_parts(&out.path().join("MGM-2B")));
        assert_eq!(printed.contains("without a checksum"), faults.no_checksums, "{printed}");
        if faults.cut_after.is_some() {
            assert!(hub.log().iter().any(|(_, first, _)| *first > 0), "nothing was resumed");
        }
    }
}

#[test]
fn an_interrupted_pull_resumes() {
    let (hub, out) = (hub(), TempDir::new().expect("a folder"));
    let model = ["someone/MGM-2B", "--no-towers"];
    // The hub is cut off after the first bytes.
    hub.misbehave(Faults { cut_after: Some(100_000), busy: 0, ..Faults::default() });
    let gone = Hub { port: hub.port, state: Arc::clone(&hub.state) };
    let watcher = std::thread::spawn(move || {
        loop {
            let mut state = gone.state.lock().expect("the state");
            if state.log.iter().any(|(path, first, _)| path.starts_with("/cdn/") && *first > 0) {
                state.faults.cut_after = Some(0);
                return;
            }
            drop(state);
            std::thread::yield_now();
        }
    });
    let error = error_of(&hub.pull(out.path(), &model));
    watcher.join().expect("a watcher");
    assert!(error.contains("run the command again"), "{error}");
    let folder = out.path().join("MGM-2B");
    let parts: usize =
        files(&folder).iter().filter(|(name, _)| name.ends_with(".part")).map(|(_, bytes)| bytes.len()).sum();
    assert!(parts >= 100_000, "{parts} bytes are left of the first attempt");

    hub.misbehave(Faults::default());
    must(&hub.pull(out.path(), &model));
    assert!(hub.log().iter().any(|(path, first, _)| path.starts_with("/cdn/") && *first >= 100_000), "{:?}", hub.log());
    for (name, bytes) in files(&golden().join("MGM-2B")) {
        assert!(fs::read(folder.join(&name)).expect(&name) == bytes, "{name} differs");
    }
    assert!(no_parts(&folder));
}

#[test]
fn failures_are_explained() {
    let (hub, out) = (hub(), TempDir::new().expect("a folder"));
    let fails = |arguments: &[&str], reason: &str| {
        let error = error_of(&hub.pull(out.path(), arguments));
        assert!(error.contains(reason), "{arguments:?}: {error:?} lacks {reason:?}");
    };
    fails(&["someone/else"], "HF_TOKEN");
    fails(&["nonsense"], "not a repository name");
    fails(&["../../etc/passwd"], "not a repository name");
    fails(&["someone/quants"], "someone/quants:Q4_K_M");
    fails(&["someone/quants:Q5_K_M"], "model-Q8_0.gguf");
    fails(&["someone/MGM-2B", "--file", "nothing.gguf"], "nothing.gguf");
    hub.misbehave(Faults { corrupt: usize::MAX / 2, ..Faults::default() });
    fails(&["someone/MGM-2B", "--no-towers"], "checksum");
    assert!(no_parts(&out.path().join("MGM-2B")), "damaged parts are left");
    hub.misbehave(Faults { busy: usize::MAX, ..Faults::default() });
    fails(&["someone/MGM-2B"], "503");

    hub.misbehave(Faults::default());
    must(&hub.pull(out.path(), &["someone/quants", "--file", "a model.gguf"]));
    assert_eq!(fs::read(out.path().join("quants/a model.gguf")).expect("a file"), b"GGUF?");
    let printed = must(&hub.pull(out.path(), &["hf.co/someone/quants:Q8_0"]));
    assert!(printed.contains("try: mgm chat") && printed.contains("quants/model-Q8_0.gguf"), "{printed}");

    let mut state = hub.state.lock().expect("the state");
    let evil =
        BTreeMap::from([("../evil.json".to_owned(), b"{}".to_vec()), ("config.json".to_owned(), b"{}".to_vec())]);
    state.repos.insert("someone/evil".to_owned(), evil);
    drop(state);
    fails(&["someone/evil"], "../evil.json");
    assert!(!out.path().join("evil.json").exists());
}
