//! Images in memory.

use std::sync::Arc;

use crate::{Error, Result};

/// An image of 8-bit RGB pixels. Clones share them: a conversation keeps its images, and a phone's takes 146 MB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    width: usize,
    height: usize,
    data: Arc<Vec<u8>>,
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
        Ok(Self { width, height, data: Arc::new(data) })
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
