//! Decoding an image to 8-bit RGB like Pillow's `Image.open(...).convert("RGB")`.
//!
//! As in the reference, the EXIF orientation is not applied and alpha is dropped, not composited. Lossless formats give
//! Pillow's pixels exactly; JPEG and lossy WebP may differ by a few steps of 255, as any two decoders do.

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use super::buffer::Image;
use crate::{Error, Result};

/// Longest side in pixels: JPEG's own limit. It bounds the tables of [`super::bicubic`] for any shape.
const MAX_SIDE: u32 = 65_535;
/// Most pixels: Pillow's limit for decompression bombs (twice its `MAX_IMAGE_PIXELS`).
const MAX_PIXELS: u64 = 178_956_970;
/// Most bytes of a decoded image before its conversion to RGB: enough for 12000 x 9000 pixels of 16-bit RGBA.
const MAX_BYTES: u64 = 1 << 30;
/// Most bytes that a decoder may allocate in addition to its output.
const MAX_WORKING_BYTES: u64 = 1 << 30;

/// The supported formats, for messages.
const FORMATS: &str = "PNG, JPEG, WebP, GIF and BMP";

#[cfg(feature = "fs")]
impl Image {
    /// Reads and decodes an image file: PNG, JPEG, WebP, GIF or BMP.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read; otherwise as [`decode`].
    pub fn open(path: impl AsRef<std::path::Path>) -> Result<Self> {
        let name = path.as_ref().display().to_string();
        let bytes = std::fs::read(path).map_err(|error| Error::io(&name, &error))?;
        decode(&name, &bytes)
    }
}

/// Decodes an image file; of an animation, the first frame. `name` is used in messages.
///
/// # Errors
/// [`Error::Image`] if the bytes are not an image in a supported format or are damaged, or if the image is too large
/// (before anything of that size is allocated).
pub fn decode(name: &str, bytes: &[u8]) -> Result<Image> {
    let fail = |reason: String| Error::Image { name: name.to_owned(), reason };

    let format = image::guess_format(bytes)
        .map_err(|_| fail(format!("{}, not an image; supported: {FORMATS}", describe(bytes))))?;
    if !format.reading_enabled() {
        return Err(fail(format!("{format:?} is not supported; convert it to one of {FORMATS}")));
    }

    let damaged = |error| fail(format!("cannot be decoded as {}: {error}", format_name(format)));
    let mut limits = Limits::no_limits();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_BYTES + MAX_WORKING_BYTES);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(damaged)?;

    let (width, height) = decoder.dimensions();
    let too_large = width > MAX_SIDE
        || height > MAX_SIDE
        || u64::from(width) * u64::from(height) > MAX_PIXELS
        || decoder.total_bytes() > MAX_BYTES;
    if too_large {
        return Err(fail(format!(
            "{width} x {height} pixels exceed the limits ({MAX_SIDE} a side, {MAX_PIXELS} in total, {MAX_BYTES} bytes \
             decoded): scale it down first"
        )));
    }
    let image = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    Image::new(width as usize, height as usize, rgb_bytes(image)).map_err(|error| fail(error.to_string()))
}

/// The samples of `image` as in Pillow's `convert("RGB")`.
fn rgb_bytes(image: DynamicImage) -> Vec<u8> {
    let high_byte = |sample: &u16| (sample >> 8) as u8;
    let gray = |value: u8| [value; 3];
    match image {
        DynamicImage::ImageRgb8(pixels) => pixels.into_raw(),
        DynamicImage::ImageRgba8(pixels) => {
            pixels.as_raw().chunks_exact(4).flat_map(|p| p.first_chunk::<3>()).flatten().copied().collect()
        }
        DynamicImage::ImageLuma8(pixels) => pixels.as_raw().iter().flat_map(|&value| gray(value)).collect(),
        DynamicImage::ImageLumaA8(pixels) => pixels.pixels().flat_map(|p| gray(p.0[0])).collect(),
        // Pillow clips 16-bit gray instead of scaling it, although it scales every other 16-bit format.
        DynamicImage::ImageLuma16(pixels) => {
            pixels.as_raw().iter().flat_map(|&value| gray(value.min(255) as u8)).collect()
        }
        DynamicImage::ImageLumaA16(pixels) => pixels.pixels().flat_map(|p| gray(high_byte(&p.0[0]))).collect(),
        DynamicImage::ImageRgb16(pixels) => pixels.as_raw().iter().map(high_byte).collect(),
        DynamicImage::ImageRgba16(pixels) => {
            pixels.as_raw().chunks_exact(4).flat_map(|p| p.first_chunk::<3>()).flatten().map(high_byte).collect()
        }
        // No supported format has floating-point samples.
        other => other.into_rgb8().into_raw(),
    }
}

/// Describes bytes that are not an image.
fn describe(bytes: &[u8]) -> String {
    const SHOWN: usize = 12;
    let start = bytes.get(..SHOWN).unwrap_or(bytes);
    if bytes.is_empty() {
        "the file is empty".to_owned()
    } else if start.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace()) {
        format!("the file starts with the text {:?}", String::from_utf8_lossy(start))
    } else {
        let hex: Vec<String> = start.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("the file starts with the bytes {}", hex.join(" "))
    }
}

fn format_name(format: ImageFormat) -> String {
    match format {
        ImageFormat::WebP => "WebP".to_owned(),
        other => format!("{other:?}").to_uppercase(),
    }
}
