//! Downloads a file over HTTP in ranges, resumes after every interruption, and verifies its checksum. The `hf-hub`
//! crate (1.0) restarts interrupted HTTP downloads, verifies no checksums, and needs tokio and reqwest.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use indicatif::ProgressBar;
use mgm::{Error, Result};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use ureq::http::{HeaderMap, Response, StatusCode};
use ureq::tls::{TlsConfig, TlsProvider};
use ureq::{Agent, Body};

use super::proxy::Proxies;
use super::redirect;
use crate::files::{self, hex, io_error};
use crate::lock::open_locked;

/// Bytes per request, so that the timeout of a request covers a bounded number of bytes.
const RANGE_BYTES: u64 = 16 << 20;
const BUFFER_BYTES: usize = 256 << 10;
/// Attempts in a row without any progress before an error.
const MAX_ATTEMPTS: u32 = 5;
/// Complete downloads with a wrong checksum before an error.
const MAX_CORRUPT_FILES: u32 = 3;
/// Wait after the first failed attempt; it doubles with each further one.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// The longest wait that a server may ask for (`Retry-After`).
const MAX_WAIT: Duration = Duration::from_secs(600);
/// A wait of this length is announced.
const LONG_WAIT: Duration = Duration::from_secs(4);
const MAX_REDIRECTS: usize = 10;

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
    /// The server's `ETag`: identifies the version of a file without a digest.
    pub etag: Option<String>,
}

impl RemoteFile {
    /// The name of the content: the digest is the `ETag` of the Hub.
    pub fn etag(&self) -> Option<&str> {
        match &self.digest {
            Some(Digest::Sha256(hex) | Digest::GitBlob(hex)) => Some(hex),
            None => self.etag.as_deref(),
        }
    }
}

/// A file's metadata from response headers.
#[derive(Debug, Default)]
pub struct Metadata {
    pub etag: Option<String>,
    pub size: Option<u64>,
}

/// Where a file is downloaded to.
#[derive(Debug, Clone)]
pub struct Target {
    /// The complete file.
    pub path: PathBuf,
    /// The incomplete file.
    pub part: PathBuf,
    /// The file that is locked meanwhile; `None` for the incomplete file.
    pub lock: Option<PathBuf>,
    /// A copy of the file that may be there already.
    pub copy: Option<PathBuf>,
}

impl Target {
    /// A file in a folder of its own. The incomplete file's name includes the version, so that a download of another
    /// version is not resumed.
    pub fn plain(path: PathBuf, file: &RemoteFile) -> Self {
        let version = file.etag().map_or("unchecked", |etag| &etag[..etag.len().min(12)]);
        let mut part = path.as_os_str().to_owned();
        part.push(format!(".{version}.part"));
        Self { path, part: part.into(), lock: None, copy: None }
    }
}

/// An HTTP client.
pub struct Client {
    agent: Agent,
    proxies: Proxies,
}

/// Why an attempt failed.
enum FetchError {
    /// Trying again may help: the connection broke or the server is busy. The server may say when.
    Transient(String, Option<Duration>),
    /// Trying again will not help.
    Permanent(Error),
}

impl Client {
    /// `timeout` applies to connecting, to a response, and to one range of a file.
    pub fn new(timeout: Duration, proxies: Proxies) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // Followed here: the headers of redirects matter, and the token stays with its host.
            .max_redirects(0)
            .proxy(None)
            .timeout_connect(Some(timeout))
            .timeout_recv_response(Some(timeout))
            .timeout_recv_body(Some(timeout))
            .tls_config(TlsConfig::builder().provider(PROVIDER).build())
            .user_agent(concat!("mgm/", env!("CARGO_PKG_VERSION")))
            .build();
        Self { agent: config.into(), proxies }
    }

    /// Fetches a response of at most `limit` bytes into memory.
    ///
    /// # Errors
    /// [`Error::Io`] after several attempts, or at once if the server refuses.
    pub fn get(&self, address: &Address, limit: u64) -> Result<Vec<u8>> {
        retry(&address.url, &ProgressBar::hidden(), || {
            let (mut response, _) = self.request(address, Method::Get(None))?;
            check_status(&response, &address.url)?;
            let body = response.body_mut().with_config().limit(limit).read_to_vec();
            body.map_err(|error| FetchError::Transient(error.to_string(), None))
        })
    }

    /// The version and size of a file.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn head(&self, address: &Address) -> Result<Metadata> {
        retry(&address.url, &ProgressBar::hidden(), || {
            let (response, mut metadata) = self.request(address, Method::Head)?;
            if !response.status().is_redirection() {
                check_status(&response, &address.url)?;
                metadata.merge(response.headers());
            }
            Ok(metadata)
        })
    }

    /// Downloads a file. Resumes a partial download; does nothing if the complete file is there. Waits while another
    /// process downloads the same file.
    ///
    /// # Errors
    /// [`Error::Io`] after several attempts, or at once if the server refuses; [`Error::Malformed`] for a wrong
    /// checksum.
    pub fn fetch(&self, address: &Address, file: &RemoteFile, target: &Target, bar: &ProgressBar) -> Result<()> {
        let is_complete = |path: &Path| -> Result<bool> {
            Ok(path.metadata().is_ok_and(|there| there.is_file() && there.len() == file.size)
                && matches_digest(path, file)?)
        };
        if is_complete(&target.path)? {
            bar.inc(file.size);
            return Ok(());
        }
        for path in [Some(&target.path), target.lock.as_ref()].into_iter().flatten() {
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder).map_err(|error| io_error(folder, error))?;
            }
        }
        let on_wait =
            || bar.suspend(|| note!("mgm: another process downloads {}; waiting for it to finish", file.name));
        let _lock = target.lock.as_ref().map(|lock| open_locked(lock, on_wait)).transpose()?;
        let mut part = PartialFile::open(&target.part, file.size, on_wait)?;
        // Another process may have completed it before this one had the lock.
        if is_complete(&target.path)? {
            bar.inc(file.size);
            return part.delete();
        }
        if let Some(copy) = &target.copy
            && part.length == 0
            && is_complete(copy)?
        {
            part.copy(copy)?;
        }
        bar.inc(part.length);
        for attempt in 1.. {
            self.fetch_rest(address, file, &mut part, bar)?;
            part.sync()?;
            if matches_digest(&part.path, file)? {
                break;
            }
            bar.dec(part.length);
            if attempt == MAX_CORRUPT_FILES {
                part.delete()?;
                return Err(Error::Malformed {
                    file: target.path.display().to_string(),
                    offset: 0,
                    reason: "the checksum differs from the Hub's: the file was damaged in transit, or the mirror \
                             changed it"
                        .to_owned(),
                });
            }
            part.restart()?;
        }
        std::fs::rename(&part.path, &target.path).map_err(|error| io_error(&target.path, error))
    }

    fn fetch_rest(
        &self,
        address: &Address,
        file: &RemoteFile,
        part: &mut PartialFile,
        bar: &ProgressBar,
    ) -> Result<()> {
        while part.length < file.size {
            retry(&address.url, bar, || {
                let range = (part.length, file.size.min(part.length + RANGE_BYTES) - 1);
                let before = part.length;
                match self.fetch_range(address, file, range, part, bar) {
                    // Progress resets the number of attempts.
                    Err(FetchError::Transient(_, None)) if part.length > before => Ok(()),
                    result => result,
                }
            })?;
        }
        Ok(())
    }

    /// Appends the bytes from `range.0` to `range.1` (inclusive) to the part.
    fn fetch_range(
        &self,
        address: &Address,
        file: &RemoteFile,
        range: (u64, u64),
        part: &mut PartialFile,
        bar: &ProgressBar,
    ) -> std::result::Result<(), FetchError> {
        let (mut response, mut metadata) = self.request(address, Method::Get(Some(range)))?;
        check_status(&response, &address.url)?;
        metadata.merge(response.headers());
        if let (None, Some(expected), Some(found)) = (&file.digest, &file.etag, &metadata.etag)
            && expected != found
        {
            let reason =
                format!("the file changed on the server (ETag {expected}, now {found}): run the command again");
            return Err(FetchError::Permanent(network(&address.url, &reason)));
        }
        let transient = |reason: String| Err(FetchError::Transient(reason, None));
        let header = |name: &str| header(response.headers(), name).unwrap_or("");
        let ranged = response.status() == StatusCode::PARTIAL_CONTENT;
        if ranged {
            let header = header("content-range");
            let (start, total) = content_range(header);
            if start != Some(range.0) || total.is_some_and(|total| total != file.size) {
                return transient(format!(
                    "requested the bytes from {} of {}, the server sent {header:?}",
                    range.0, file.size
                ));
            }
        } else {
            // A proxy's or portal's page, or another version of the file.
            if header("content-length").parse().is_ok_and(|length: u64| length != file.size) {
                return transient(format!(
                    "expected {} bytes, the server offers {}",
                    file.size,
                    header("content-length")
                ));
            }
            if range.0 > 0 {
                // The server ignored the range and sends the file from its beginning.
                bar.dec(part.length);
                part.restart().map_err(FetchError::Permanent)?;
            }
        }
        // Without ranges the response is the whole file.
        let expected = if ranged { range.1 + 1 - range.0 } else { file.size };
        let mut reader = response.body_mut().as_reader().take(expected);
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let count = reader.read(&mut buffer).map_err(|error| FetchError::Transient(error.to_string(), None))?;
            if count == 0 {
                break;
            }
            part.append(&buffer[..count]).map_err(FetchError::Permanent)?;
            bar.inc(count as u64);
        }
        match reader.limit() {
            0 => Ok(()),
            missing => transient(format!("the connection closed {missing} bytes early")),
        }
    }

    /// Sends a request and follows redirects. Also returns what the redirects say of the file: the Hub's have the
    /// version and size of large files (`X-Linked-ETag`), which are on other hosts.
    fn request(
        &self,
        address: &Address,
        method: Method,
    ) -> std::result::Result<(Response<Body>, Metadata), FetchError> {
        let mut url = address.url.clone();
        let mut metadata = Metadata::default();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send(address, &url, method)?;
            metadata.merge_linked(response.headers());
            let location = response.headers().get("location").and_then(|value| value.to_str().ok());
            let (true, Some(location)) = (response.status().is_redirection(), location) else {
                return Ok((response, metadata));
            };
            let next = redirect::resolve(&url, location).ok_or_else(|| {
                FetchError::Permanent(network(&url, &format!("the server redirects to {location:?}, not an address")))
            })?;
            // Other hosts sign URLs for GET only, and the Hub's response already has the metadata.
            if matches!(method, Method::Head) && metadata.etag.is_some() && !redirect::same_host(&url, &next) {
                return Ok((response, metadata));
            }
            url = next;
        }
        Err(FetchError::Permanent(network(&address.url, &format!("more than {MAX_REDIRECTS} redirects"))))
    }

    fn send(&self, address: &Address, url: &str, method: Method) -> std::result::Result<Response<Body>, FetchError> {
        let request = if matches!(method, Method::Head) { self.agent.head(url) } else { self.agent.get(url) };
        // Sizes and ranges are those of the file, not of a compressed one.
        let mut request = request.config().proxy(self.proxies.of(url)).build().header("accept-encoding", "identity");
        if let Some(token) = &address.token
            && redirect::same_host(&address.url, url)
        {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Method::Get(Some((first, last))) = method {
            request = request.header("range", format!("bytes={first}-{last}"));
        }
        request.call().map_err(|error| match error {
            ureq::Error::BadUri(_) | ureq::Error::Tls(_) | ureq::Error::Http(_) | ureq::Error::InvalidProxyUrl => {
                FetchError::Permanent(network(url, &error.to_string()))
            }
            error => FetchError::Transient(error.to_string(), None),
        })
    }
}

#[derive(Debug, Clone, Copy)]
enum Method {
    Head,
    /// First and last byte.
    Get(Option<(u64, u64)>),
}

impl Metadata {
    fn merge_linked(&mut self, headers: &HeaderMap) {
        self.set(header(headers, "x-linked-etag"), header(headers, "x-linked-size"));
    }

    fn merge(&mut self, headers: &HeaderMap) {
        self.set(header(headers, "etag"), header(headers, "content-length"));
    }

    /// The first value counts.
    fn set(&mut self, etag: Option<&str>, size: Option<&str>) {
        let etag = etag.map(|etag| etag.trim().trim_start_matches("W/").trim_matches('"').to_owned());
        self.etag = self.etag.take().or(etag);
        self.size = self.size.or(size.and_then(|size| size.trim().parse().ok()));
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// First byte and size of the file in `bytes FIRST-LAST/SIZE`.
fn content_range(header: &str) -> (Option<u64>, Option<u64>) {
    let Some(rest) = header.trim().strip_prefix("bytes ") else { return (None, None) };
    let (range, size) = rest.split_once('/').unwrap_or((rest, "*"));
    (range.split('-').next().and_then(|first| first.trim().parse().ok()), size.trim().parse().ok())
}

/// Converts an error status to an error.
fn check_status(response: &Response<Body>, url: &str) -> std::result::Result<(), FetchError> {
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    let headers = response.headers();
    // The Hub's explanation, such as that a model is gated.
    let message = header(headers, "x-error-message").map_or(String::new(), |message| format!(" ({message})"));
    let reason = format!("the server returned {status}{message}");
    if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS || status == StatusCode::REQUEST_TIMEOUT {
        return Err(FetchError::Transient(reason, requested_wait(headers)));
    }
    let hint = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            ": the model doesn't exist, or is private or gated: accept its terms on the Hub, and log in with \
             `hf auth login` or set HF_TOKEN to a token that may read it"
        }
        StatusCode::NOT_FOUND => ": no such repository, revision or file",
        StatusCode::RANGE_NOT_SATISFIABLE => ": the file changed; run the command again",
        status if status.is_redirection() => ": a redirect without an address",
        _ => "",
    };
    Err(FetchError::Permanent(network(url, &format!("{reason}{hint}"))))
}

/// The wait that a busy server asks for: `Retry-After` in seconds or as a date, or the `t` of `RateLimit`.
fn requested_wait(headers: &HeaderMap) -> Option<Duration> {
    let seconds = |text: &str| text.trim().parse().ok().map(Duration::from_secs);
    let date = |text: &str| httpdate::parse_http_date(text.trim()).ok();
    let limit = || {
        let fields = header(headers, "ratelimit")?.split(';');
        fields.into_iter().find_map(|field| seconds(field.trim().strip_prefix("t=")?))
    };
    let Some(after) = header(headers, "retry-after") else { return limit() };
    seconds(after).or_else(|| {
        // The server's clock may differ from this one.
        let now = header(headers, "date").and_then(date).unwrap_or_else(SystemTime::now);
        Some(date(after)?.duration_since(now).unwrap_or_default())
    })
}

/// Repeats an attempt until it succeeds, with growing waits, at most [`MAX_ATTEMPTS`] times.
fn retry<T>(
    url: &str,
    bar: &ProgressBar,
    mut attempt: impl FnMut() -> std::result::Result<T, FetchError>,
) -> Result<T> {
    let mut wait = FIRST_WAIT;
    let mut remaining = MAX_ATTEMPTS;
    loop {
        remaining -= 1;
        let (reason, requested) = match attempt() {
            Ok(value) => return Ok(value),
            Err(FetchError::Permanent(error)) => return Err(error),
            Err(FetchError::Transient(reason, requested)) => (reason, requested.unwrap_or_default()),
        };
        if remaining == 0 {
            let reason = format!("{reason} ({MAX_ATTEMPTS} attempts; run the command again to resume)");
            return Err(network(url, &reason));
        }
        if requested > MAX_WAIT {
            let seconds = requested.as_secs();
            let reason = format!("{reason} and asks to wait {seconds} s; run the command again then to resume");
            return Err(network(url, &reason));
        }
        if requested >= LONG_WAIT {
            bar.suspend(|| note!("mgm: {url}: {reason}; trying again in {} s, as it asks", requested.as_secs()));
        }
        std::thread::sleep(wait.max(requested));
        wait *= 2;
    }
}

/// An incomplete file, to append to.
struct PartialFile {
    path: PathBuf,
    file: File,
    length: u64,
}

impl PartialFile {
    /// Opens or creates the file and locks it. `size`: of the complete file.
    fn open(path: &Path, size: u64, on_wait: impl Fn()) -> Result<Self> {
        let file = open_locked(path, on_wait)?;
        let length = file.metadata().map_err(|error| io_error(path, error))?.len();
        let mut part = Self { path: path.to_owned(), file, length };
        if part.length > size {
            part.restart()?;
        }
        Ok(part)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|error| self.cannot_write(error))?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    fn copy(&mut self, from: &Path) -> Result<()> {
        let copied = File::open(from).and_then(|mut from| std::io::copy(&mut from, &mut self.file));
        self.length = copied.map_err(|error| self.cannot_write(error))?;
        Ok(())
    }

    fn restart(&mut self) -> Result<()> {
        self.length = 0;
        let emptied = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        emptied.map(|_| ()).map_err(|error| io_error(&self.path, error))
    }

    /// The system may report a full disk only here.
    fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|error| self.cannot_write(error))
    }

    fn delete(self) -> Result<()> {
        std::fs::remove_file(&self.path).map_err(|error| io_error(&self.path, error))
    }

    fn cannot_write(&self, error: std::io::Error) -> Error {
        let path = self.path.display().to_string();
        let reason = format!("{error}; the downloaded part remains: run the command again to resume");
        Error::Io { file: path, kind: error.kind(), reason }
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
    let hashed = File::open(path).and_then(|mut file| files::hash(&mut hasher, &mut file, |_| ()));
    hashed.map_err(|error| io_error(path, error))?;
    Ok(hasher.finalize().to_vec())
}

fn network(url: &str, reason: &str) -> Error {
    Error::Io { file: url.to_owned(), kind: std::io::ErrorKind::Other, reason: reason.to_owned() }
}
