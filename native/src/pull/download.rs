//! One file over HTTP: in pieces, going on after every interruption, checked at the end.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::ProgressBar;
use mgm::{Error, Result};
use mgm_native::files::{hex, io_error};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use ureq::http::{Response, StatusCode};
use ureq::tls::{TlsConfig, TlsProvider};
use ureq::{Agent, Body};

use super::hub::{Address, Digest, HubFile};

/// Asked for at once, so that the time limit of a request is one of a bounded number of bytes.
const PIECE: u64 = 16 << 20;
const BUFFER: usize = 256 << 10;
/// Failures in a row that bring nothing, before the file is given up.
const ATTEMPTS: u32 = 5;
/// Whole files that come out wrong, before the file is given up.
const WRONG_FILES: u32 = 3;
/// The wait after the first failure; it doubles.
const FIRST_WAIT: Duration = Duration::from_millis(500);

#[cfg(any(windows, target_vendor = "apple"))]
const PROVIDER: TlsProvider = TlsProvider::NativeTls;
#[cfg(not(any(windows, target_vendor = "apple")))]
const PROVIDER: TlsProvider = TlsProvider::Rustls;

/// Makes requests.
pub struct Client {
    agent: Agent,
}

/// How an attempt failed.
enum Trouble {
    /// Trying again may help: the connection broke, the server is busy.
    Passing(String),
    /// It will not.
    Final(Error),
}

impl Client {
    /// A client that waits this long for a connection, for an answer, and for one piece of a file.
    pub fn new(timeout: Duration) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(timeout))
            .timeout_recv_response(Some(timeout))
            .timeout_recv_body(Some(timeout))
            .tls_config(TlsConfig::builder().provider(PROVIDER).build())
            .user_agent(concat!("mgm/", env!("CARGO_PKG_VERSION")))
            .build();
        Self { agent: config.into() }
    }

    /// A short answer, whole.
    pub fn get(&self, address: &Address, most: u64) -> Result<Vec<u8>> {
        retry(&address.url, || {
            let mut answer = self.request(address, None)?;
            refuse(&answer, &address.url)?;
            answer
                .body_mut()
                .with_config()
                .limit(most)
                .read_to_vec()
                .map_err(|error| Trouble::Passing(error.to_string()))
        })
    }

    /// A file, to `path`. What an earlier run left is gone on with; a file that is there already is left alone.
    pub fn fetch(&self, address: &Address, file: &HubFile, path: &Path, bar: &ProgressBar) -> Result<()> {
        if path.metadata().is_ok_and(|there| there.len() == file.size) && is_right(path, file)? {
            bar.inc(file.size);
            return Ok(());
        }
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|error| io_error(folder, error))?;
        }
        let mut wrong = 0;
        loop {
            let part = Part::open(path, file)?;
            bar.inc(part.length);
            let part = self.fetch_rest(address, file, part, bar)?;
            match part.finish(path, file) {
                Err(error @ Error::Malformed { .. }) => {
                    bar.dec(file.size);
                    wrong += 1;
                    if wrong == WRONG_FILES {
                        return Err(error);
                    }
                }
                done => return done,
            }
        }
    }

    fn fetch_rest(&self, address: &Address, file: &HubFile, mut part: Part, bar: &ProgressBar) -> Result<Part> {
        while part.length < file.size {
            retry(&address.url, || {
                let range = (part.length, file.size.min(part.length + PIECE) - 1);
                let before = part.length;
                let result = self.piece(address, range, &mut part, bar);
                match result {
                    // Something came: that counts as a success, however it ended.
                    Err(Trouble::Passing(_)) if part.length > before => Ok(()),
                    result => result,
                }
            })?;
        }
        Ok(part)
    }

    /// Appends the bytes from `range.0` to `range.1` (inclusive) to the part.
    fn piece(
        &self,
        address: &Address,
        range: (u64, u64),
        part: &mut Part,
        bar: &ProgressBar,
    ) -> std::result::Result<(), Trouble> {
        let mut answer = self.request(address, Some(range))?;
        refuse(&answer, &address.url)?;
        if answer.status() == StatusCode::PARTIAL_CONTENT {
            let header = answer.headers().get("content-range").and_then(|value| value.to_str().ok()).unwrap_or("");
            let begin = header.strip_prefix("bytes ").and_then(|rest| rest.split('-').next());
            if begin.and_then(|begin| begin.trim().parse().ok()) != Some(range.0) {
                return Err(Trouble::Passing(format!("asked for the bytes from {}, was given {header:?}", range.0)));
            }
        } else if range.0 > 0 {
            // This server knows no ranges: the file comes from its beginning.
            bar.dec(part.length);
            part.restart().map_err(Trouble::Final)?;
        }
        let ranged = answer.status() == StatusCode::PARTIAL_CONTENT;
        // Without ranges the answer is the whole file, or more than it.
        let wanted = if ranged { range.1 + 1 - range.0 } else { part.size };
        let mut reader = answer.body_mut().as_reader().take(wanted);
        let mut buffer = vec![0; BUFFER];
        loop {
            let count = reader.read(&mut buffer).map_err(|error| Trouble::Passing(error.to_string()))?;
            if count == 0 {
                break;
            }
            part.append(&buffer[..count]).map_err(Trouble::Final)?;
            bar.inc(count as u64);
        }
        match reader.limit() {
            0 => Ok(()),
            missing => Err(Trouble::Passing(format!("the connection ended {missing} bytes early"))),
        }
    }

    fn request(&self, address: &Address, range: Option<(u64, u64)>) -> std::result::Result<Response<Body>, Trouble> {
        let mut request = self.agent.get(&address.url);
        if let Some(token) = &address.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some((first, last)) = range {
            request = request.header("range", format!("bytes={first}-{last}"));
        }
        request.call().map_err(|error| match error {
            ureq::Error::BadUri(_) | ureq::Error::Tls(_) => Trouble::Final(network(&address.url, &error.to_string())),
            error => Trouble::Passing(error.to_string()),
        })
    }
}

/// Says what an answer's status means, if it is no success.
fn refuse(answer: &Response<Body>, url: &str) -> std::result::Result<(), Trouble> {
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    let said = format!("the server says {status}");
    if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS || status == StatusCode::REQUEST_TIMEOUT {
        return Err(Trouble::Passing(said));
    }
    let hint = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            ": the model is not there, or private or gated; put a token that may read it in HF_TOKEN"
        }
        StatusCode::NOT_FOUND => ": there is no such repository, revision or file",
        _ => "",
    };
    Err(Trouble::Final(network(url, &format!("{said}{hint}"))))
}

/// Tries until something works, or nothing has for a while.
fn retry<T>(url: &str, mut attempt: impl FnMut() -> std::result::Result<T, Trouble>) -> Result<T> {
    let mut wait = FIRST_WAIT;
    let mut left = ATTEMPTS;
    loop {
        left -= 1;
        match attempt() {
            Ok(value) => return Ok(value),
            Err(Trouble::Final(error)) => return Err(error),
            Err(Trouble::Passing(reason)) if left == 0 => {
                return Err(network(url, &format!("{reason} ({ATTEMPTS} attempts; run the command again to go on)")));
            }
            Err(Trouble::Passing(_)) => std::thread::sleep(wait),
        }
        wait *= 2;
    }
}

/// A file that is not whole yet, beside where it will be.
struct Part {
    path: PathBuf,
    file: File,
    length: u64,
    size: u64,
}

impl Part {
    /// Opens what there is of a file. Its name holds the digest, so that parts of another version are not gone on with.
    fn open(path: &Path, file: &HubFile) -> Result<Self> {
        let version = match &file.digest {
            Some(Digest::Sha256(hex) | Digest::GitBlob(hex)) => &hex[..12],
            None => "unchecked",
        };
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{version}.part"));
        let path = PathBuf::from(name);
        let opened = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .and_then(|file| Ok((file.metadata()?.len(), file)));
        let (length, handle) = opened.map_err(|error| io_error(&path, error))?;
        let mut part = Self { path, file: handle, length, size: file.size };
        if part.length > file.size {
            part.restart()?;
        }
        Ok(part)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|error| io_error(&self.path, error))?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    fn restart(&mut self) -> Result<()> {
        self.length = 0;
        let emptied = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        emptied.map(|_| ()).map_err(|error| io_error(&self.path, error))
    }

    /// Checks the content and gives the file its name. A wrong one is removed.
    fn finish(self, path: &Path, file: &HubFile) -> Result<()> {
        self.file.sync_all().map_err(|error| io_error(&self.path, error))?;
        if is_right(&self.path, file)? {
            return std::fs::rename(&self.path, path).map_err(|error| io_error(path, error));
        }
        std::fs::remove_file(&self.path).map_err(|error| io_error(&self.path, error))?;
        Err(Error::Malformed {
            file: path.display().to_string(),
            offset: 0,
            reason: "what came has another checksum than the hub gives: damaged on the way, or changed at the mirror"
                .to_owned(),
        })
    }
}

/// Whether a file's content is what its digest says; `true` where there is none.
fn is_right(path: &Path, file: &HubFile) -> Result<bool> {
    Ok(match &file.digest {
        None => true,
        Some(Digest::Sha256(expected)) => hex(&hash(path, Sha256::new())?) == *expected,
        Some(Digest::GitBlob(expected)) => {
            let mut hasher = Sha1::new();
            hasher.update(format!("blob {}\0", file.size));
            hex(&hash(path, hasher)?) == *expected
        }
    })
}

fn hash<D: sha2::Digest>(path: &Path, mut hasher: D) -> Result<Vec<u8>> {
    let mut read = || {
        let mut file = File::open(path)?;
        let mut buffer = vec![0; BUFFER];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(()),
                count => hasher.update(&buffer[..count]),
            }
        }
    };
    read().map_err(|error: std::io::Error| io_error(path, error))?;
    Ok(hasher.finalize().to_vec())
}

fn network(url: &str, reason: &str) -> Error {
    Error::Io { file: url.to_owned(), reason: reason.to_owned() }
}
