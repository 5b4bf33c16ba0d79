//! Pixels.

use crate::{Error, Result};

/// A picture of 8-bit RGB pixels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rgb8 {
    width: usize,
    height: usize,
    data: Vec<u8>,
}

impl Rgb8 {
    /// A picture from `width * height` pixels of three bytes each, row by row from the top.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a side is zero or `data` is not `width * height * 3` bytes long.
    pub fn new(width: usize, height: usize, data: Vec<u8>) -> Result<Self> {
        let expected = width.checked_mul(height).and_then(|pixels| pixels.checked_mul(3));
        if width == 0 || height == 0 || expected != Some(data.len()) {
            return Err(Error::InvalidArgument(format!(
                "{} bytes do not make a picture of {width} x {height} RGB pixels",
                data.len()
            )));
        }
        Ok(Self { width, height, data })
    }

    /// Pixels in a row; never zero.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows; never zero.
    pub fn height(&self) -> usize {
        self.height
    }

    /// All pixels, `[height, width, 3]`.
    pub fn data(&self) -> &[u8] {
        &self.data
    }
}
