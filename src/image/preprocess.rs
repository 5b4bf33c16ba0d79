//! From an image to the two views that the vision towers encode.

use super::{Canvas, Image, Window, bicubic, bilinear};
use crate::{Error, Result};

/// Channel means of the CLIP ViT-L/14 processor, RGB in 0..1.
pub const CLIP_MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];
/// Channel standard deviations of the CLIP ViT-L/14 processor, RGB in 0..1.
pub const CLIP_STD: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];

/// Largest side of a view; the released models use 1536.
const MAX_SIDE: usize = 8192;

/// How images are prepared. [`Preprocess::default`] is that of the released 768-pixel models.
#[derive(Debug, Clone, PartialEq)]
pub struct Preprocess {
    /// Side of the high-resolution view in pixels (`image_size_aux`: 768 or 1536).
    pub size_high: usize,
    /// Side of a low-resolution tile in pixels (the CLIP tower's `image_size`: 336).
    pub size_low: usize,
    /// Tiles along a side of the low-resolution view (`image_grid`: 1 or 2).
    pub grid: usize,
    /// Whether a tile of the whole image follows the others (`image_global`).
    pub global: bool,
    /// Pad to a square (`image_aspect_ratio` is `pad`); otherwise resize the shortest edge and crop the center.
    pub pad: bool,
    /// Channel means, RGB in 0..1; also the colour of the padding.
    pub mean: [f64; 3],
    /// Channel standard deviations, RGB in 0..1.
    pub std: [f64; 3],
}

impl Default for Preprocess {
    fn default() -> Self {
        Self { size_high: 768, size_low: 336, grid: 1, global: false, pad: true, mean: CLIP_MEAN, std: CLIP_STD }
    }
}

/// The views of one image: normalised samples, channels first.
#[derive(Debug, Clone, PartialEq)]
pub struct Views {
    /// The high-resolution view, `[3, size_high, size_high]`.
    pub high: Vec<f32>,
    /// The low-resolution tiles, each `[3, size_low, size_low]`: the grid row by row, then the global tile, if there is
    /// one. (The global tile is last here and first in the sequence of visual tokens.)
    pub low: Vec<Vec<f32>>,
}

impl Preprocess {
    /// Prepares one image.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a size is zero or too large, or a standard deviation is not positive.
    pub fn views(&self, image: &Image) -> Result<Views> {
        self.check()?;
        let high = self.normalize(&self.square(image));

        let side = self.size_low * self.grid;
        let low = bilinear(&high, (self.size_high, self.size_high), (side, side));
        let mut tiles: Vec<Vec<f32>> = (0..self.grid * self.grid)
            .map(|tile| cut(&low, side, self.size_low, tile / self.grid, tile % self.grid))
            .collect();
        if self.global {
            tiles.push(bilinear(&low, (side, side), (self.size_low, self.size_low)));
        }
        Ok(Views { high, low: tiles })
    }

    fn check(&self) -> Result<()> {
        let side = self.size_low.checked_mul(self.grid);
        let sides_fit = [Some(self.size_high), side].iter().all(|side| matches!(side, Some(1..=MAX_SIDE)));
        if !sides_fit {
            return Err(Error::InvalidArgument(format!(
                "views of {} pixels and {} tiles of {} pixels a side: each side must be 1 to {MAX_SIDE} pixels",
                self.size_high, self.grid, self.size_low
            )));
        }
        let positive = |std: &f64| std.is_finite() && *std > 0.0;
        if !self.std.iter().all(positive) || !self.mean.iter().all(|mean| mean.is_finite()) {
            return Err(Error::InvalidArgument(format!(
                "image mean {:?} and standard deviation {:?} must be finite, the latter positive",
                self.mean, self.std
            )));
        }
        Ok(())
    }

    /// The image as `size_high` x `size_high` pixels: padded and resized, or resized and cropped.
    fn square(&self, image: &Image) -> Image {
        let size = self.size_high;
        let canvas = if self.pad {
            Canvas::square(image, self.mean.map(|mean| (mean * 255.0) as u8))
        } else {
            Canvas::new(image)
        };
        // The longer edge is truncated, not rounded.
        let (width, height) = (canvas.width(), canvas.height());
        let shortest = width.min(height);
        let scaled = |edge: usize| ((size as f64 * edge as f64) / shortest as f64) as usize;
        let (width, height) = (scaled(width), scaled(height));
        let window = Window { left: (width - size) / 2, top: (height - size) / 2, width: size, height: size };
        bicubic(&canvas, width, height, window)
    }

    /// `[height, width, 3]` bytes to `[3, height, width]` normalised samples.
    fn normalize(&self, image: &Image) -> Vec<f32> {
        let pixels = image.width() * image.height();
        let mut planes = Vec::with_capacity(3 * pixels);
        for (channel, (mean, std)) in self.mean.iter().zip(&self.std).enumerate() {
            // Rescaled in f64, rounded to f32, then normalised in f32, as in the reference's processor.
            let value = |byte: usize| ((byte as f64 * (1.0 / 255.0)) as f32 - *mean as f32) / *std as f32;
            let table: [f32; 256] = std::array::from_fn(value);
            planes.extend(image.data().iter().skip(channel).step_by(3).map(|&byte| table[usize::from(byte)]));
        }
        planes
    }
}

/// Tile (`row`, `column`) of `size` x `size` of planes `[3, side, side]`.
fn cut(planes: &[f32], side: usize, size: usize, row: usize, column: usize) -> Vec<f32> {
    let mut tile = Vec::with_capacity(3 * size * size);
    for plane in planes.chunks_exact(side * side) {
        for line in plane.chunks_exact(side).skip(row * size).take(size) {
            tile.extend_from_slice(&line[column * size..][..size]);
        }
    }
    tile
}
