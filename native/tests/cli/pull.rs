//! `mgm pull` against a local hub that drops connections, corrupts bytes, is busy, and redirects: the downloaded model
//! gives the expected answers.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const TOKEN: &str = "hf_secret";

/// Faults of the hub.
#[derive(Default, Clone, Copy)]
struct Faults {
    /// Every connection for a weights file ends after this many bytes.
    cut_after: Option<usize>,
    /// The first responses to every path are 503.
    busy: usize,
    /// The first downloads of every weights file have a wrong byte.
    corrupt: usize,
    /// `Range` is ignored.
    no_ranges: bool,
    /// Weights have no checksum in the listing.
    no_checksums: bool,
}

#[derive(Default)]
struct State {
    /// Repositories: files by name.
    repos: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    faults: Faults,
    /// Requests so far by path.
    seen: HashMap<String, usize>,
    /// Path, first byte asked for, and token of every request.
    log: Vec<(String, usize, Option<String>)>,
}

struct Hub {
    port: u16,
    state: Arc<Mutex<State>>,
}

impl Hub {
    fn start(repos: BTreeMap<String, BTreeMap<String, Vec<u8>>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let state = Arc::new(Mutex::new(State { repos, ..State::default() }));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                // Errors of a client that disconnects are ignored.
                std::thread::spawn(move || drop(serve(&stream, port, &shared)));
            }
        });
        Self { port, state }
    }

    fn misbehave(&self, faults: Faults) {
        let mut state = self.state.lock().expect("the state");
        state.faults = faults;
        state.seen.clear();
        state.log.clear();
    }

    fn log(&self) -> Vec<(String, usize, Option<String>)> {
        self.state.lock().expect("the state").log.clone()
    }

    fn pull(&self, out: &Path, more: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mgm"));
        command.env("HF_ENDPOINT", format!("http://127.0.0.1:{}/", self.port)).env("HF_TOKEN", TOKEN);
        command.args(["pull", "--timeout", "20", "--out"]).arg(out).args(more);
        command.stdin(Stdio::null()).output().expect("the binary runs")
    }
}

fn serve(mut stream: &TcpStream, port: u16, shared: &Mutex<State>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let (mut first, mut last, mut token) = (0, usize::MAX, None);
    for line in lines {
        let line = line?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(": ").unwrap_or((&line, ""));
        match name.to_lowercase().as_str() {
            "range" => {
                let (from, to) = value.trim_start_matches("bytes=").split_once('-').expect("a range");
                (first, last) = (from.parse().expect("a number"), to.parse().expect("a number"));
            }
            "authorization" => token = Some(value.to_owned()),
            _ => {}
        }
    }
    let mut state = shared.lock().expect("the state");
    state.log.push((path.clone(), first, token));
    let faults = state.faults;
    let seen = state.seen.entry(path.clone()).or_default();
    *seen += 1;
    let request_number = *seen;
    if request_number <= faults.busy {
        return write!(stream, "HTTP/1.1 503 Busy\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    }
    let path = path.trim_start_matches('/');
    if let Some(repo) = path.strip_prefix("api/models/").and_then(|rest| rest.split("/revision/").next()) {
        return match state.repos.get(repo) {
            Some(files) => send(stream, listing(files, faults).to_string().as_bytes(), None, usize::MAX),
            None => write!(stream, "HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"),
        };
    }
    let Some((repo, name)) = path.trim_start_matches("cdn/").split_once(&format!("/resolve/{COMMIT}/")) else {
        return write!(stream, "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    };
    let name = name.replace("%20", " ");
    let mut bytes = state.repos[repo][&name].clone();
    drop(state);
    if !is_weights(&name) {
        return send(stream, &bytes, Some((first, last)), usize::MAX);
    }
    // As on the Hub, large files are on another host.
    if !path.starts_with("cdn/") {
        let location = format!("http://localhost:{port}/cdn/{path}");
        return write!(
            stream,
            "HTTP/1.1 302 Found\r\nlocation: {location}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        );
    }
    if request_number <= faults.busy + faults.corrupt {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    }
    let range = (!faults.no_ranges).then_some((first, last));
    send(stream, &bytes, range, faults.cut_after.unwrap_or(usize::MAX))
}

/// A response that may end after `limit` bytes.
fn send(mut stream: &TcpStream, bytes: &[u8], range: Option<(usize, usize)>, limit: usize) -> std::io::Result<()> {
    let (status, extra, body) = match range {
        Some((first, last)) if last != usize::MAX => {
            let last = last.min(bytes.len() - 1);
            let header = format!("content-range: bytes {first}-{last}/{}\r\n", bytes.len());
            ("206 Partial Content", header, &bytes[first..=last])
        }
        _ => ("200 OK", String::new(), bytes),
    };
    write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {}\r\n{extra}connection: close\r\n\r\n", body.len())?;
    stream.write_all(&body[..body.len().min(limit)])
}

fn is_weights(name: &str) -> bool {
    name.ends_with(".safetensors") || name.ends_with(".bin")
}

fn listing(files: &BTreeMap<String, Vec<u8>>, faults: Faults) -> Value {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let siblings: Vec<Value> = files
        .iter()
        .map(|(name, bytes)| {
            let size = bytes.len();
            let mut blob = Sha1::new();
            blob.update(format!("blob {size}\0"));
            if is_weights(name) && faults.no_checksums {
                return json!({"rfilename": name, "size": size});
            }
            if is_weights(name) {
                let sha256 = hex(&Sha256::digest(bytes));
                blob.update("a pointer, not the content");
                let lfs = json!({"sha256": sha256, "size": size, "pointerSize": 130});
                return json!({"rfilename": name, "size": size, "blobId": hex(&blob.finalize()), "lfs": lfs});
            }
            blob.update(bytes);
            json!({"rfilename": name, "size": size, "blobId": hex(&blob.finalize())})
        })
        .collect();
    json!({"id": "a/model", "sha": COMMIT, "siblings": siblings})
}

fn golden() -> PathBuf {
    mgm_test_support::goldens().join("gemma-2b")
}

/// A folder's files.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    fs::read_dir(folder)
        .expect("a folder")
        .flatten()
        .filter(|entry| entry.path().is_file())
        .map(|entry| (entry.file_name().into_string().expect("UTF-8"), fs::read(entry.path()).expect("a file")))
        .collect()
}

/// The golden Gemma as an uploaded repository, with the other files that repositories contain.
fn hub() -> Hub {
    let mut model = files(&golden().join("MGM-2B"));
    model.insert("README.md".to_owned(), b"# A model".to_vec());
    model.insert("training_args.bin".to_owned(), vec![7; 3000]);
    model.insert(".gitattributes".to_owned(), b"*.safetensors filter=lfs".to_vec());
    let tower = |name: &str| files(&golden().join("OpenAI").join(name));
    let mut clip = tower("clip-vit-large-patch14-336");
    clip.insert("tf_model.h5".to_owned(), vec![1; 5000]);
    let convnext = tower("openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup");
    Hub::start(BTreeMap::from([
        ("someone/MGM-2B".to_owned(), model),
        ("openai/clip-vit-large-patch14-336".to_owned(), clip),
        ("laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup".to_owned(), convnext),
        (
            "someone/quants".to_owned(),
            BTreeMap::from([("a model.gguf".to_owned(), b"GGUF?".to_vec()), ("README.md".to_owned(), b"#".to_vec())]),
        ),
    ]))
}

fn error_of(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

fn must(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

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

    let expected: Value =
        serde_json::from_slice(&fs::read(golden().join("expected.json")).expect("a file")).expect("JSON");
    let turn = &expected["turns"][0];
    let mut chat = Command::new(env!("CARGO_BIN_EXE_mgm"));
    chat.args(["chat", "--precision", "f32", "--temperature", "0", "--json", "--max-new-tokens", "8", "--prompt"]);
    chat.arg(turn["question"].as_str().expect("a question"))
        .arg("--image")
        .arg(golden().join("image0.png"))
        .arg(&model);
    let report: Value = serde_json::from_str(&must(&chat.output().expect("the binary runs"))).expect("JSON");
    let ids = report["turns"][0]["token_ids"].as_array().expect("ids");
    let greedy = turn["greedy_ids"].as_array().expect("greedy_ids");
    assert_eq!(ids[..], greedy[..ids.len()]);

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
    fails(&["someone/quants"], "a model.gguf");
    fails(&["someone/MGM-2B", "--file", "nothing.gguf"], "nothing.gguf");
    hub.misbehave(Faults { corrupt: usize::MAX / 2, ..Faults::default() });
    fails(&["someone/MGM-2B", "--no-towers"], "checksum");
    assert!(no_parts(&out.path().join("MGM-2B")), "damaged parts are left");
    hub.misbehave(Faults { busy: usize::MAX, ..Faults::default() });
    fails(&["someone/MGM-2B"], "503");

    hub.misbehave(Faults::default());
    must(&hub.pull(out.path(), &["someone/quants", "--file", "a model.gguf"]));
    assert_eq!(fs::read(out.path().join("quants/a model.gguf")).expect("a file"), b"GGUF?");

    let mut state = hub.state.lock().expect("the state");
    let evil =
        BTreeMap::from([("../evil.json".to_owned(), b"{}".to_vec()), ("config.json".to_owned(), b"{}".to_vec())]);
    state.repos.insert("someone/evil".to_owned(), evil);
    drop(state);
    fails(&["someone/evil"], "../evil.json");
    assert!(!out.path().join("evil.json").exists());
}
