//! A local hub that drops connections, corrupts bytes, is busy, and redirects.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub const TOKEN: &str = "hf_secret";

/// Faults of the hub.
#[derive(Default, Clone, Copy)]
pub struct Faults {
    /// Every connection for a weights file ends after this many bytes.
    pub cut_after: Option<usize>,
    /// The first responses to every path are 503.
    pub busy: usize,
    /// The first downloads of every weights file have a wrong byte.
    pub corrupt: usize,
    /// `Range` is ignored.
    pub no_ranges: bool,
    /// Weights have no checksum in the listing.
    pub no_checksums: bool,
    /// Without a checksum, the version of weights is this number.
    pub version: usize,
    /// What busy responses have as `Retry-After`, in seconds.
    pub retry_after: Option<u64>,
    /// Milliseconds between 16 KiB of weights.
    pub slow: u64,
}

#[derive(Default)]
pub struct State {
    /// Repositories: files by name. Those of other commits than [`COMMIT`] are under `REPOSITORY@COMMIT`.
    pub repos: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    /// The commits of branches, tags and pull requests other than `main`.
    pub revisions: BTreeMap<String, String>,
    pub faults: Faults,
    /// Requests so far by path.
    pub seen: HashMap<String, usize>,
    /// Path, first byte asked for, and token of every request.
    pub log: Vec<(String, usize, Option<String>)>,
}

pub struct Hub {
    pub port: u16,
    pub state: Arc<Mutex<State>>,
}

impl Hub {
    pub fn start(repos: BTreeMap<String, BTreeMap<String, Vec<u8>>>) -> Self {
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

    pub fn misbehave(&self, faults: Faults) {
        let mut state = self.state.lock().expect("the state");
        state.faults = faults;
        state.seen.clear();
        state.log.clear();
    }

    pub fn log(&self) -> Vec<(String, usize, Option<String>)> {
        self.state.lock().expect("the state").log.clone()
    }

    /// A command that knows this hub and no other, with this folder as `HF_HOME`.
    pub fn mgm(&self, home: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mgm"));
        for variable in VARIABLES {
            command.env_remove(variable);
        }
        command.env("HF_ENDPOINT", format!("http://127.0.0.1:{}/", self.port)).env("HF_TOKEN", TOKEN);
        command.env("HF_HOME", home).stdin(Stdio::null());
        command
    }

    pub fn pull(&self, out: &Path, more: &[&str]) -> Output {
        // The cache is empty.
        let mut command = self.mgm(Path::new("/nowhere"));
        command.args(["pull", "--timeout", "20", "--out"]).arg(out).args(more);
        command.output().expect("the binary runs")
    }

    /// Downloads into the cache in `home`.
    pub fn pull_to_cache(&self, home: &Path, more: &[&str]) -> Output {
        self.mgm(home).args(["pull", "--timeout", "20"]).args(more).output().expect("the binary runs")
    }

    /// The requests for the content of files from which first byte.
    pub fn downloads(&self) -> Vec<(String, usize)> {
        let log = self.log().into_iter();
        log.filter(|(path, ..)| path.starts_with("/cdn/")).map(|(path, first, _)| (path, first)).collect()
    }
}

/// What the tests set, so that the user's values have no effect.
const VARIABLES: [&str; 12] = [
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_TOKEN_PATH",
    "HUGGING_FACE_HUB_TOKEN",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN",
    "HTTP_PROXY",
    "http_proxy",
    "ALL_PROXY",
    "all_proxy",
    "HTTPS_PROXY",
];

fn serve(mut stream: &TcpStream, port: u16, shared: &Mutex<State>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let head = request.starts_with("HEAD ");
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
                (first, last) = (from.parse().expect("a number"), to.parse().unwrap_or(usize::MAX - 1));
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
        let after = faults.retry_after.map_or(String::new(), |seconds| format!("retry-after: {seconds}\r\n"));
        return write!(stream, "HTTP/1.1 503 Busy\r\n{after}content-length: 0\r\nconnection: close\r\n\r\n");
    }
    // A repository that was renamed.
    if path.contains("/someone/old-name") {
        let location = path.replace("/someone/old-name", "/someone/MGM-2B");
        let end = "content-length: 0\r\nconnection: close\r\n\r\n";
        return write!(stream, "HTTP/1.1 307 Temporary Redirect\r\nlocation: {location}\r\n{end}");
    }
    let path = path.trim_start_matches('/');
    let key = |repo: &str, commit: &str| if commit == COMMIT { repo.to_owned() } else { format!("{repo}@{commit}") };
    if let Some((repo, query)) = path.strip_prefix("api/models/").and_then(|rest| rest.split_once("/revision/")) {
        let end = "content-length: 0\r\nconnection: close\r\n\r\n";
        if !state.repos.contains_key(repo) {
            return write!(stream, "HTTP/1.1 401 Unauthorized\r\n{end}");
        }
        let revision = query.split('?').next().unwrap_or_default().replace("%2F", "/");
        let commit = match revision.as_str() {
            "main" => Some(COMMIT),
            other => state.revisions.get(other).map(String::as_str).or(Some(other)),
        };
        let found = commit.and_then(|commit| Some((commit, state.repos.get(&key(repo, commit))?)));
        return match found {
            Some((commit, files)) => {
                send(stream, listing(files, faults, commit).to_string().as_bytes(), None, Sending::default())
            }
            None => write!(stream, "HTTP/1.1 404 Not Found\r\nx-error-code: RevisionNotFound\r\n{end}"),
        };
    }
    let named = |(revision, commit): (&str, &str)| {
        let separator = format!("/resolve/{revision}/");
        let (repo, name) = path.trim_start_matches("cdn/").split_once(&separator)?;
        let name = name.replace("%20", " ");
        Some((commit.to_owned(), state.repos.get(&key(repo, commit))?.get(&name)?.clone(), name))
    };
    let commits = state.revisions.values().map(|commit| (commit.as_str(), commit.as_str()));
    let found = commits.chain([(COMMIT, COMMIT), ("main", COMMIT)]).find_map(named);
    let Some((commit, mut bytes, name)) = found else {
        let code = "x-error-code: EntryNotFound\r\n";
        return write!(stream, "HTTP/1.1 404 Not Found\r\n{code}content-length: 0\r\nconnection: close\r\n\r\n");
    };
    drop(state);
    let (etag, size) = (etag(&name, &bytes), bytes.len());
    // The ETag of mirrors that have no checksums.
    let etag = if faults.no_checksums && is_weights(&name) { format!("v{}-{name}", faults.version) } else { etag };
    let facts = format!("x-repo-commit: {commit}\r\netag: \"{etag}\"\r\naccept-ranges: bytes\r\n");
    let sending = Sending { head, facts: facts.clone(), ..Sending::default() };
    if !is_weights(&name) {
        return send(stream, &bytes, Some((first, last)), sending);
    }
    // As on the Hub, large files are on another host.
    if !path.starts_with("cdn/") {
        let location = format!("http://localhost:{port}/cdn/{path}");
        return write!(
            stream,
            "HTTP/1.1 302 Found\r\nlocation: {location}\r\nx-repo-commit: {commit}\r\nx-linked-etag: \"{etag}\"\r\n\
             x-linked-size: {size}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        );
    }
    if request_number <= faults.busy + faults.corrupt {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    }
    let range = (!faults.no_ranges).then_some((first, last));
    let limit = faults.cut_after.unwrap_or(usize::MAX);
    send(stream, &bytes, range, Sending { limit, pause: Duration::from_millis(faults.slow), ..sending })
}

/// How a response is sent.
struct Sending {
    head: bool,
    /// More headers.
    facts: String,
    /// Bytes of the body before the connection closes.
    limit: usize,
    /// Between 16 KiB.
    pause: Duration,
}

impl Default for Sending {
    fn default() -> Self {
        Self { head: false, facts: String::new(), limit: usize::MAX, pause: Duration::ZERO }
    }
}

fn send(mut stream: &TcpStream, bytes: &[u8], range: Option<(usize, usize)>, sending: Sending) -> std::io::Result<()> {
    let (status, extra, body) = match range {
        Some((first, last)) if last != usize::MAX => {
            let last = last.min(bytes.len() - 1);
            let header = format!("content-range: bytes {first}-{last}/{}\r\n", bytes.len());
            ("206 Partial Content", header, &bytes[first..=last])
        }
        _ => ("200 OK", String::new(), bytes),
    };
    let Sending { head, facts, limit, pause } = sending;
    write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {}\r\n{facts}{extra}connection: close\r\n\r\n", body.len())?;
    if head {
        return Ok(());
    }
    for piece in body[..body.len().min(limit)].chunks(16 << 10) {
        stream.write_all(piece)?;
        std::thread::sleep(pause);
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The version of a file on the Hub: SHA-256 of the content in Git LFS, Git's own digest of the others.
pub fn etag(name: &str, bytes: &[u8]) -> String {
    if is_weights(name) {
        return hex(&Sha256::digest(bytes));
    }
    let mut blob = Sha1::new();
    blob.update(format!("blob {}\0", bytes.len()));
    blob.update(bytes);
    hex(&blob.finalize())
}

pub fn is_weights(name: &str) -> bool {
    name.ends_with(".safetensors") || name.ends_with(".bin")
}

fn listing(files: &BTreeMap<String, Vec<u8>>, faults: Faults, commit: &str) -> Value {
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
    json!({"id": "a/model", "sha": commit, "siblings": siblings})
}

pub fn golden() -> PathBuf {
    mgm_test_support::goldens().join("gemma-2b")
}

/// A folder's files.
pub fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    fs::read_dir(folder)
        .expect("a folder")
        .flatten()
        .filter(|entry| entry.path().is_file())
        .map(|entry| (entry.file_name().into_string().expect("UTF-8"), fs::read(entry.path()).expect("a file")))
        .collect()
}

/// The golden Gemma as an uploaded repository, with the other files that repositories contain.
pub fn hub() -> Hub {
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
            BTreeMap::from([
                ("a model.gguf".to_owned(), b"GGUF?".to_vec()),
                ("model-Q8_0.gguf".to_owned(), b"GGUF8".to_vec()),
                ("README.md".to_owned(), b"#".to_vec()),
            ]),
        ),
    ]))
}

pub fn error_of(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

pub fn must(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}
