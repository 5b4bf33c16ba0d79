//! The cache of the Hub that all Hugging Face tools share, in the layout of huggingface_hub:
//! `models--OWNER--NAME/blobs/ETAG` has the content, `snapshots/COMMIT/FILE` is a relative link to it, `refs/REVISION`
//! has the commit of a branch or tag, and `.locks/models--OWNER--NAME/ETAG.lock` is locked during a download.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use mgm::Result;

use super::download::RemoteFile;
use super::model_name::is_part;
use crate::files::{io_error, replace};

/// The part of the cache that belongs to one repository.
#[derive(Debug, Clone)]
pub struct RepoCache {
    folder: PathBuf,
    locks: PathBuf,
}

impl RepoCache {
    /// `repo`: `OWNER/NAME`, valid.
    pub fn new(cache: &Path, repo: &str) -> Self {
        let name = format!("models--{}", repo.replace('/', "--"));
        Self { folder: cache.join(&name), locks: cache.join(".locks").join(name) }
    }

    pub fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    pub fn lock(&self, etag: &str) -> PathBuf {
        self.locks.join(format!("{etag}.lock"))
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// The cached commit of a branch, tag or commit.
    pub fn commit(&self, revision: &str) -> Option<String> {
        let reference = std::fs::read_to_string(self.folder.join("refs").join(revision));
        let commit = reference.map_or_else(|_| revision.to_owned(), |commit| commit.trim().to_owned());
        (is_part(&commit) && self.snapshot(&commit).is_dir()).then_some(commit)
    }

    /// Remembers which commit a branch or tag is.
    ///
    /// # Errors
    /// [`mgm::Error::Io`].
    pub fn set_commit(&self, revision: &str, commit: &str) -> Result<()> {
        let path = self.folder.join("refs").join(revision);
        if revision == commit || std::fs::read_to_string(&path).is_ok_and(|before| before == commit) {
            return Ok(());
        }
        replace(&path, commit.as_bytes()).map_err(|error| io_error(&path, error))
    }

    /// The files of a snapshot whose content is there, without checksums.
    pub fn files(&self, commit: &str) -> Vec<RemoteFile> {
        let mut files = Vec::new();
        let mut folders = vec![(self.snapshot(commit), String::new())];
        while let Some((folder, prefix)) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let (path, name) = (entry.path(), format!("{prefix}{}", entry.file_name().to_string_lossy()));
                // Follows links: those to blobs that were deleted are left out.
                match path.metadata() {
                    Ok(metadata) if metadata.is_dir() => folders.push((path, format!("{name}/"))),
                    Ok(metadata) => files.push(RemoteFile { name, size: metadata.len(), digest: None, etag: None }),
                    Err(_) => {}
                }
            }
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        files
    }

    /// Links a file of a snapshot to its blob, which is complete.
    ///
    /// # Errors
    /// [`mgm::Error::Io`].
    pub fn link(&self, commit: &str, name: &str, etag: &str) -> Result<()> {
        let (path, blob) = (self.snapshot(commit).join(name), self.blob(etag));
        let target = format!("{}blobs/{etag}", "../".repeat(2 + name.matches('/').count()));
        if std::fs::read_link(&path).is_ok_and(|there| there == Path::new(&target)) {
            return Ok(());
        }
        let make = || {
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)?;
            }
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            match symlink(&target, &path) {
                // Another process made the same link in between.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
                // No links on this file system, or on Windows without the right to make them.
                Err(_) => std::fs::hard_link(&blob, &path).or_else(|_| std::fs::copy(&blob, &path).map(drop)),
                Ok(()) => Ok(()),
            }
        };
        make().map_err(|error: std::io::Error| io_error(&path, error))
    }
}

#[cfg(unix)]
fn symlink(target: &str, path: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, path)
}

#[cfg(windows)]
fn symlink(target: &str, path: &Path) -> std::io::Result<()> {
    std::os::windows::fs::symlink_file(target.replace('/', "\\"), path)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_: &str, _: &Path) -> std::io::Result<()> {
    Err(ErrorKind::Unsupported.into())
}

/// `OWNER/NAME` of a snapshot's folder or a file in it: their own names are a commit and a part of the model.
pub fn repo_of(path: &Path) -> Option<String> {
    let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
    let at = parts.iter().rposition(|part| part == "snapshots")?;
    let repo = parts.get(at.checked_sub(1)?)?.strip_prefix("models--")?;
    Some(repo.replacen("--", "/", 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_know_their_repository() {
        let repo = |path: &str| repo_of(Path::new(path));
        assert_eq!(repo("/c/models--a--b/snapshots/0123"), Some("a/b".to_owned()));
        assert_eq!(repo("/c/models--a--b-c/snapshots/0123/x/y.gguf"), Some("a/b-c".to_owned()));
        assert_eq!(repo("/models/b"), None);
        assert_eq!(repo("snapshots/b"), None);
    }
}
