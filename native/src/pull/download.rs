//! Downloads a file over HTTP in ranges, resumes after every interruption, and verifies its checksum. The `hf-hub`
//! crate (1.0) restarts interrupted HTTP downloads, verifies no checksums, and needs tokio and reqwest.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::ProgressBar;
use mgm::{Error, Result};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use ureq::http::{Response, StatusCode};
use ureq::tls::{TlsConfig, TlsProvider};
use ureq::{Agent, Body};

use crate::files::{hex, io_error};

/// Bytes per request, so that the timeout of a request covers a bounded number of bytes.
const RANGE_BYTES: u64 = 16 << 20;
const BUFFER_BYTES: usize = 256 << 10;
/// Attempts in a row without any progress before an error.
const MAX_ATTEMPTS: u32 = 5;
/// Complete downloads with a wrong checksum before an error.
const MAX_CORRUPT_FILES: u32 = 3;
/// Wait after the first failed attempt; it doubles with each further one.
const FIRST_WAIT: Duration = Duration::from_millis(500);

#[cfg(any(windows, target_vendor = "apple"))]
const PROVIDER: TlsProvider = TlsProvider::NativeTls;
#[cfg(not(any(windows, target_vendor = "apple")))]
const PROVIDER: TlsProvider = TlsProvider::Rustls;

/// A URL and the token that authorizes access to it.
pub struct Address {
    pub url: String,
    pub token: Option<String>,
}

/// The checksum of a file's content, in lower-case hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Digest {
    /// SHA-256 of the content, for large files (Git LFS).
    Sha256(String),
    /// Git's blob id: SHA-1 of `blob`, the length, and the content.
    GitBlob(String),
}

/// A file to download.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteFile {
    pub name: String,
    pub size: u64,
    pub digest: Option<Digest>,
}

/// An HTTP client.
pub struct Client {
    agent: Agent,
}

/// Why an attempt failed.
enum FetchError {
    /// Trying again may help: the connection broke or the server is busy.
    Transient(String),
    /// Trying again will not help.
    Permanent(Error),
}

impl Client {
    /// `timeout` applies to connecting, to a response, and to one range of a file.
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

    /// Fetches a response of at most `limit` bytes into memory.
    ///
    /// # Errors
    /// [`Error::Io`] after several attempts, or at once if the server refuses.
    pub fn get(&self, address: &Address, limit: u64) -> Result<Vec<u8>> {
        retry(&address.url, || {
            let mut response = self.request(address, None)?;
            check_status(&response, &address.url)?;
            response
                .body_mut()
                .with_config()
                .limit(limit)
                .read_to_vec()
                .map_err(|error| FetchError::Transient(error.to_string()))
        })
    }

    /// Downloads a file to `path`. Resumes a partial download; does nothing if the complete file is there.
    ///
    /// # Errors
    /// [`Error::Io`] after several attempts, or at once if the server refuses; [`Error::Malformed`] for a wrong
    /// checksum.
    pub fn fetch(&self, address: &Address, file: &RemoteFile, path: &Path, bar: &ProgressBar) -> Result<()> {
        if path.metadata().is_ok_and(|there| there.len() == file.size) && matches_digest(path, file)? {
            bar.inc(file.size);
            return Ok(());
        }
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|error| io_error(folder, error))?;
        }
        let mut corrupt = 0;
        loop {
            let part = PartialFile::open(path, file)?;
            bar.inc(part.length);
            let part = self.fetch_rest(address, file, part, bar)?;
            match part.finish(path, file) {
                Err(error @ Error::Malformed { .. }) => {
                    bar.dec(file.size);
                    corrupt += 1;
                    if corrupt == MAX_CORRUPT_FILES {
                        return Err(error);
                    }
                }
                done => return done,
            }
        }
    }

    fn fetch_rest(
        &self,
        address: &Address,
        file: &RemoteFile,
        mut part: PartialFile,
        bar: &ProgressBar,
    ) -> Result<PartialFile> {
        while part.length < file.size {
            retry(&address.url, || {
                let range = (part.length, file.size.min(part.length + RANGE_BYTES) - 1);
                let before = part.length;
                match self.fetch_range(address, range, &mut part, bar) {
                    // Progress resets the number of attempts.
                    Err(FetchError::Transient(_)) if part.length > before => Ok(()),
                    result => result,
                }
            })?;
        }
        Ok(part)
    }

    /// Appends the bytes from `range.0` to `range.1` (inclusive) to the part.
    fn fetch_range(
        &self,
        address: &Address,
        range: (u64, u64),
        part: &mut PartialFile,
        bar: &ProgressBar,
    ) -> std::result::Result<(), FetchError> {
        let mut response = self.request(address, Some(range))?;
        check_status(&response, &address.url)?;
        if response.status() == StatusCode::PARTIAL_CONTENT {
            let header = response.headers().get("content-range").and_then(|value| value.to_str().ok()).unwrap_or("");
            let start = header.strip_prefix("bytes ").and_then(|rest| rest.split('-').next());
            if start.and_then(|start| start.trim().parse().ok()) != Some(range.0) {
                return Err(FetchError::Transient(format!("requested the bytes from {}, got {header:?}", range.0)));
            }
        } else if range.0 > 0 {
            // The server ignored the range and sends the file from its beginning.
            bar.dec(part.length);
            part.restart().map_err(FetchError::Permanent)?;
        }
        let ranged = response.status() == StatusCode::PARTIAL_CONTENT;
        // Without ranges the response is the whole file, or longer.
        let expected = if ranged { range.1 + 1 - range.0 } else { part.size };
        let mut reader = response.body_mut().as_reader().take(expected);
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let count = reader.read(&mut buffer).map_err(|error| FetchError::Transient(error.to_string()))?;
            if count == 0 {
                break;
            }
            part.append(&buffer[..count]).map_err(FetchError::Permanent)?;
            bar.inc(count as u64);
        }
        match reader.limit() {
            0 => Ok(()),
            missing => Err(FetchError::Transient(format!("the connection closed {missing} bytes early"))),
        }
    }

    fn request(&self, address: &Address, range: Option<(u64, u64)>) -> std::result::Result<Response<Body>, FetchError> {
        let mut request = self.agent.get(&address.url);
        if let Some(token) = &address.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some((first, last)) = range {
            request = request.header("range", format!("bytes={first}-{last}"));
        }
        request.call().map_err(|error| match error {
            ureq::Error::BadUri(_) | ureq::Error::Tls(_) => {
                FetchError::Permanent(network(&address.url, &error.to_string()))
            }
            error => FetchError::Transient(error.to_string()),
        })
    }
}

/// Converts an error status to an error.
fn check_status(response: &Response<Body>, url: &str) -> std::result::Result<(), FetchError> {
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    let reason = format!("the server returned {status}");
    if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS || status == StatusCode::REQUEST_TIMEOUT {
        return Err(FetchError::Transient(reason));
    }
    let hint = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            ": the model doesn't exist, or is private or gated; set HF_TOKEN to a token that may read it"
        }
        StatusCode::NOT_FOUND => ": no such repository, revision or file",
        _ => "",
    };
    Err(FetchError::Permanent(network(url, &format!("{reason}{hint}"))))
}

/// Repeats an attempt until it succeeds, with growing waits, at most [`MAX_ATTEMPTS`] times.
fn retry<T>(url: &str, mut attempt: impl FnMut() -> std::result::Result<T, FetchError>) -> Result<T> {
    let mut wait = FIRST_WAIT;
    let mut remaining = MAX_ATTEMPTS;
    loop {
        remaining -= 1;
        match attempt() {
            Ok(value) => return Ok(value),
            Err(FetchError::Permanent(error)) => return Err(error),
            Err(FetchError::Transient(reason)) if remaining == 0 => {
                return Err(network(
                    url,
                    &format!("{reason} ({MAX_ATTEMPTS} attempts; run the command again to resume)"),
                ));
            }
            Err(FetchError::Transient(_)) => std::thread::sleep(wait),
        }
        wait *= 2;
    }
}

/// A partial download, next to its destination.
struct PartialFile {
    path: PathBuf,
    file: File,
    length: u64,
    size: u64,
}

impl PartialFile {
    /// Opens or creates the partial file. Its name includes the digest, so that a download of another version is not
    /// resumed.
    fn open(path: &Path, file: &RemoteFile) -> Result<Self> {
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

    /// Verifies the content and renames the file. Deletes it if the checksum is wrong.
    fn finish(self, path: &Path, file: &RemoteFile) -> Result<()> {
        self.file.sync_all().map_err(|error| io_error(&self.path, error))?;
        if matches_digest(&self.path, file)? {
            return std::fs::rename(&self.path, path).map_err(|error| io_error(path, error));
        }
        std::fs::remove_file(&self.path).map_err(|error| io_error(&self.path, error))?;
        Err(Error::Malformed {
            file: path.display().to_string(),
            offset: 0,
            reason: "the checksum differs from the hub's: the file was damaged in transit, or the mirror changed it"
                .to_owned(),
        })
    }
}

/// Whether a file's content matches its digest; `true` if it has none.
fn matches_digest(path: &Path, file: &RemoteFile) -> Result<bool> {
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
        let mut buffer = vec![0; BUFFER_BYTES];
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
    Error::Io { file: url.to_owned(), kind: std::io::ErrorKind::Other, reason: reason.to_owned() }
}
