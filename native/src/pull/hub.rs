//! The Hub's API: files of a repository.

use std::path::{Component, Path};

use mgm::{Error, Result};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use super::download::{Address, Client, Digest, RemoteFile};
use super::environment::Environment;
use super::model_name::{is_part, is_revision};

/// Maximum size of an API response, in bytes.
const MAX_LISTING: u64 = 32 << 20;

/// The Hugging Face Hub, or the mirror in `HF_ENDPOINT`.
pub struct Hub<'a> {
    client: &'a Client,
    environment: &'a Environment,
}

/// The files of a repository at one commit.
pub struct Snapshot {
    pub repo: String,
    pub commit: String,
    pub files: Vec<RemoteFile>,
}

#[derive(Deserialize)]
struct RepoInfo {
    sha: Option<String>,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

impl<'a> Hub<'a> {
    pub fn new(client: &'a Client, environment: &'a Environment) -> Self {
        Self { client, environment }
    }

    /// Lists the files of a repository at a branch, tag or commit.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a malformed revision; [`Error::Malformed`] for an unexpected response; those of
    /// [`Client::get`].
    pub fn list(&self, repo: &str, revision: &str) -> Result<Snapshot> {
        if !is_revision(revision) {
            return Err(Error::InvalidArgument(format!("{revision:?} is not a branch, tag or commit")));
        }
        let url = format!("{}/api/models/{repo}/revision/{}?blobs=true", self.environment.endpoint, escape(revision));
        let bytes = self.client.get(&self.address(url.clone()), MAX_LISTING)?;
        let malformed = |reason: String| Error::Malformed { file: url.clone(), offset: 0, reason };
        let info: RepoInfo = serde_json::from_slice(&bytes).map_err(|error| malformed(error.to_string()))?;
        let commit = info.sha.filter(|sha| is_part(sha)).unwrap_or_else(|| revision.to_owned());
        let files: Result<Vec<RemoteFile>> = info.siblings.into_iter().map(|file| file.checked(&malformed)).collect();
        Ok(Snapshot { repo: repo.to_owned(), commit, files: files? })
    }

    /// Requests the `ETag` of a file for which the listing has no checksum.
    ///
    /// # Errors
    /// [`Error::Malformed`] if the `ETag` cannot be a file name, or the size differs from the listing's; those of
    /// [`Client::head`].
    pub fn complete(&self, snapshot: &Snapshot, file: &mut RemoteFile) -> Result<()> {
        if file.etag().is_some() {
            return Ok(());
        }
        let address = self.file(snapshot, file);
        let metadata = self.client.head(&address)?;
        let malformed = |reason: String| Error::Malformed { file: address.url.clone(), offset: 0, reason };
        if let Some(etag) = &metadata.etag
            && (!is_part(etag) || etag.len() > 128)
        {
            return Err(malformed(format!("the ETag {etag:?} cannot be used as a file name")));
        }
        if metadata.size.is_some_and(|size| size != file.size) {
            let (found, listed) = (metadata.size.unwrap_or_default(), file.size);
            return Err(malformed(format!("the server offers {found} bytes, its listing says {listed}")));
        }
        file.etag = metadata.etag;
        Ok(())
    }

    /// The address of a file.
    pub fn file(&self, snapshot: &Snapshot, file: &RemoteFile) -> Address {
        let name: Vec<String> = file.name.split('/').map(escape).collect();
        let (endpoint, Snapshot { repo, commit, .. }) = (&self.environment.endpoint, snapshot);
        self.address(format!("{endpoint}/{repo}/resolve/{commit}/{}", name.join("/")))
    }

    fn address(&self, url: String) -> Address {
        Address { url, token: self.environment.token.clone() }
    }
}

impl Sibling {
    /// Checks the name, which becomes a path to write to and must stay inside the folder.
    fn checked(self, malformed: &impl Fn(String) -> Error) -> Result<RemoteFile> {
        let name = self.rfilename;
        let inside = Path::new(&name).components().all(|part| matches!(part, Component::Normal(_)));
        if !inside || name.is_empty() || name.chars().any(|c| c.is_control() || "\\:*?\"<>|".contains(c)) {
            return Err(malformed(format!("unsafe file name {name:?}")));
        }
        let lfs = self.lfs.unwrap_or(Lfs { sha256: None, size: None });
        let size = lfs.size.or(self.size).ok_or_else(|| malformed(format!("{name} has no size")))?;
        let hex =
            |digest: &String, length: usize| digest.len() == length && digest.bytes().all(|b| b.is_ascii_hexdigit());
        let digest = match (lfs.sha256, self.blob) {
            (Some(sha256), _) if hex(&sha256, 64) => Some(Digest::Sha256(sha256.to_lowercase())),
            (None, Some(blob)) if hex(&blob, 40) => Some(Digest::GitBlob(blob.to_lowercase())),
            _ => None,
        };
        Ok(RemoteFile { name, size, digest, etag: None })
    }
}

/// The characters of a path segment that need no escape (RFC 3986, "unreserved").
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Percent-encodes a path segment.
fn escape(segment: &str) -> String {
    utf8_percent_encode(segment, UNRESERVED).to_string()
}
