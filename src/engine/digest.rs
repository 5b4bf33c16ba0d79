//! Keys of cached prefixes: hashes of their positions and of a salt.

use sha2::{Digest, Sha256};

use crate::image::Image;

/// SHA-256 of an image's size, its pixels and the name of its preprocessing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageDigest([u8; 32]);

impl ImageDigest {
    /// `view` names the preprocessing: the same pixels in another view have other visual tokens.
    pub fn new(image: &Image, view: &str) -> Self {
        let mut hasher = Sha256::new();
        hasher.update((image.width() as u64).to_le_bytes());
        hasher.update((image.height() as u64).to_le_bytes());
        hasher.update(image.data());
        hasher.update(view.as_bytes());
        Self(hasher.finalize().into())
    }
}

/// The input of the language model at one position, as the prefix cache compares it: images by their content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CachedPosition {
    /// A text token.
    Text(u32),
    /// A visual token.
    Visual {
        /// The image that it belongs to.
        image: ImageDigest,
        /// The row among the image's visual tokens.
        row: u32,
    },
}

/// Separates the cached prefixes and visual tokens of different users. If they shared them, response times would reveal
/// what others asked, and about which images.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Salt(pub Vec<u8>);

/// Identifies a prefix of whole blocks: the first 16 bytes of SHA-256 over the key of the prefix one block shorter, the
/// salt and the block's positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PrefixKey([u8; 16]);

impl PrefixKey {
    /// The empty prefix.
    pub fn root(salt: &Salt) -> Self {
        Self::of(&[], salt, &[])
    }

    /// This prefix and the positions of the block after it.
    pub fn child(&self, salt: &Salt, positions: &[CachedPosition]) -> Self {
        Self::of(&self.0, salt, positions)
    }

    fn of(parent: &[u8], salt: &Salt, positions: &[CachedPosition]) -> Self {
        let mut hasher = Sha256::new();
        // Lengths first, so that no two inputs are the same bytes.
        hasher.update((parent.len() as u64).to_le_bytes());
        hasher.update(parent);
        hasher.update((salt.0.len() as u64).to_le_bytes());
        hasher.update(&salt.0);
        for position in positions {
            match position {
                CachedPosition::Text(id) => {
                    hasher.update([0]);
                    hasher.update(id.to_le_bytes());
                }
                CachedPosition::Visual { image, row } => {
                    hasher.update([1]);
                    hasher.update(image.0);
                    hasher.update(row.to_le_bytes());
                }
            }
        }
        let digest: [u8; 32] = hasher.finalize().into();
        let (first, _) = digest.split_at(16);
        let mut key = [0; 16];
        key.copy_from_slice(first);
        Self(key)
    }
}
