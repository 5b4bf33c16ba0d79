//! The bundle, mgm's packed form of a model: a folder of small safetensors shards and `bundle.json`.
//!
//! `bundle.json` ([`Manifest`]) contains the configurations of all parts, and names, sizes and SHA-256 of all other
//! files: those of the tokenizer, and shards of at most [`SHARD_BYTES`]. The rows of a tensor larger than a shard
//! continue in the next shard under the same name. Quantised matrices are GGUF blocks (`Q4_1` for q4, `Q8_0` for q8, or
//! those of a GGUF file), as `U8` [rows, bytes]; `quantised` in the manifest has their type. So any safetensors library
//! opens a shard, and any GGUF library reads its blocks.
//!
//! [`read`] opens a bundle, [`bundle_layout`](super::bundle_layout) plans one; the host writes the files and their
//! checksums.

pub mod read;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::blocks::BlockType;
use crate::{Error, Result, json};

/// The manifest's name.
pub const MANIFEST: &str = "bundle.json";
/// Most bytes of a shard.
pub const SHARD_BYTES: u64 = 64 << 20;
/// `format` of a manifest.
pub(super) const FORMAT: &str = "mgm-bundle";
/// The version that this program writes and the newest that it reads.
pub(super) const VERSION: u32 = 1;
/// The header of a packed GGUF file: its metadata and tokenizer, without the tensors.
pub(super) const GGUF_HEADER: &str = "header.gguf";
/// CLIP's configuration among [`Manifest::configs`].
pub(super) const CLIP_CONFIG: &str = "clip_config.json";
/// Largest manifest that is read.
const MAX_MANIFEST: u64 = 64 << 20;
const MAX_FILES: usize = 1 << 16;

/// `bundle.json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Manifest {
    /// `mgm-bundle`.
    pub format: String,
    /// Version of the format.
    pub version: u32,
    /// The model's name.
    pub name: String,
    /// Precision of the language model's matrices; for a packed GGUF file, of most of them.
    pub precision: String,
    /// The conversation template's name; absent if the model has its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation: Option<String>,
    /// Length of the packed GGUF file; absent for a checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gguf_bytes: Option<u64>,
    /// Configuration files by their names.
    #[serde(default)]
    pub configs: BTreeMap<String, Value>,
    /// Other files: the tokenizer's.
    #[serde(default)]
    pub files: Vec<BundleFile>,
    /// The shards, in order.
    pub shards: Vec<BundleFile>,
    /// GGUF's name of the block type of every quantised tensor.
    #[serde(default)]
    pub quantised: BTreeMap<String, String>,
}

/// A file of a bundle.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleFile {
    /// Its name in the bundle's folder.
    pub file: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// Its SHA-256 in hexadecimal.
    pub sha256: String,
    /// Its part of the model: `tokenizer`, `vision`, `language` or `diffusion`.
    pub part: String,
}

impl Manifest {
    /// Reads `bundle.json`; `file` is its name for messages.
    ///
    /// # Errors
    /// [`Error::Config`] if it is malformed, [`Error::Unsupported`] if it is too new.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self> {
        let error = |reason| Error::Config { file: file.to_owned(), reason };
        let manifest: Self = json::from_slice(bytes).map_err(|problem| error(problem.to_string()))?;
        if manifest.format != FORMAT {
            return Err(error(format!("its format is {:?}, expected {FORMAT:?}", manifest.format)));
        }
        if manifest.version > VERSION {
            return Err(Error::Unsupported {
                what: format!("{file}: bundle version"),
                found: manifest.version.to_string(),
                supported: format!("1 to {VERSION}; a newer mgm may read it"),
            });
        }
        if manifest.files.len() + manifest.shards.len() > MAX_FILES {
            return Err(error(format!("it names more than {MAX_FILES} files")));
        }
        for entry in manifest.all_files() {
            // Hosts use these names as file names.
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
            if entry.file.is_empty() || entry.file.starts_with('.') || !entry.file.chars().all(plain) {
                return Err(error(format!("{:?} is not a valid file name in a bundle", entry.file)));
            }
            if entry.sha256.len() != 64 || !entry.sha256.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(error(format!("{}: {:?} is not a SHA-256", entry.file, entry.sha256)));
            }
        }
        Ok(manifest)
    }

    /// The other files, then the shards.
    pub fn all_files(&self) -> impl Iterator<Item = &BundleFile> {
        self.files.iter().chain(&self.shards)
    }

    /// Bytes of all files except the manifest.
    pub fn bytes(&self) -> u64 {
        self.all_files().map(|entry| entry.bytes).fold(0, u64::saturating_add)
    }
}

/// The block type with this name in GGUF.
fn block_type(name: &str) -> Option<BlockType> {
    BlockType::ALL.into_iter().find(|kind| kind.name() == name)
}
