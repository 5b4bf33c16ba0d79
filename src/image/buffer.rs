//! Images in memory.

use crate::{Error, Result};

/// An image of 8-bit RGB pixels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    width: usize,
    height: usize,
    data: Vec<u8>,
}

impl Image {
    /// An image from `width * height` pixels of three bytes each, row by row from the top.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a side is zero or `data` is not `width * height * 3` bytes long.
    pub fn new(width: usize, height: usize, data: Vec<u8>) -> Result<Self> {
        let expected = width.checked_mul(height).and_then(|pixels| pixels.checked_mul(3));
        if width == 0 || height == 0 || expected != Some(data.len()) {
            return Err(Error::InvalidArgument(format!(
                "{} bytes do not make an image of {width} x {height} RGB pixels",
                data.len()
            )));
        }
        Ok(Self { width, height, data })
    }

    /// Reads and decodes an image file: PNG, JPEG, WebP, GIF or BMP.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read; otherwise as [`decode`](super::decode).
    #[cfg(all(feature = "fs", feature = "decode"))]
    pub fn open(path: impl AsRef<std::path::Path>) -> Result<Self> {
        let name = path.as_ref().display().to_string();
        let bytes = std::fs::read(path).map_err(|error| Error::io(&name, &error))?;
        super::decode(&name, &bytes)
    }

    /// Writes a PNG file.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be written.
    #[cfg(all(feature = "fs", feature = "decode"))]
    pub fn save(&self, path: impl AsRef<std::path::Path>) -> Result<()> {
        let bytes = super::encode_png(self, &[])?;
        std::fs::write(&path, bytes).map_err(|error| Error::io(path.as_ref().display().to_string(), &error))
    }

    /// Width in pixels; never zero.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Height in pixels; never zero.
    pub fn height(&self) -> usize {
        self.height
    }

    /// All pixels, `[height, width, 3]`.
    pub fn data(&self) -> &[u8] {
        &self.data
    }
}
