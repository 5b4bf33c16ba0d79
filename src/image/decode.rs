//! Decoding image files to 8-bit RGB.
//!
//! Lossless formats give Pillow's pixels exactly; JPEG and lossy WebP may differ by a few steps of 255, as any two
//! decoders do.

use std::fmt;
use std::io::{Cursor, ErrorKind};
use std::str::FromStr;

use image::error::DecodingError;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};

use super::buffer::Image;
use super::container::{UNREADABLE, ends_early, without_trailer};
use super::tiff_kinds;
use crate::{Error, Result};

/// Longest side in pixels: JPEG's own limit. It bounds the tables of [`super::bicubic`] for any shape.
const MAX_SIDE: u32 = 65_535;
/// Maximum number of pixels: Pillow's limit for decompression bombs (twice its `MAX_IMAGE_PIXELS`).
const MAX_PIXELS: u64 = 178_956_970;
/// Maximum size in bytes of a decoded image before its conversion to RGB: enough for 12000 x 9000 pixels of 16-bit
/// RGBA.
const MAX_BYTES: u64 = 1 << 30;
/// Maximum number of bytes that a decoder may allocate in addition to its output.
const MAX_WORKING_BYTES: u64 = 1 << 30;
/// Largest file: an image of [`MAX_BYTES`] that is not compressed, and its metadata.
#[cfg(feature = "fs")]
const MAX_FILE: u64 = MAX_BYTES + (64 << 20);
/// Bytes that identify a format.
#[cfg(feature = "fs")]
const HEAD: usize = 64;

/// The supported formats, for messages.
const FORMATS: &str = "PNG, JPEG, WebP, GIF, TIFF and BMP";

/// How to decode an image that viewers and the reference show differently.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum ImageDecoding {
    /// As viewers and browsers show it: EXIF orientation applied, transparency blended over white, 16-bit grey scaled.
    #[default]
    Corrected,
    /// As the reference reads it, with Pillow's `Image.open(...).convert("RGB")`: EXIF orientation ignored (except
    /// TIFF), alpha dropped, 16-bit grey clipped at 255.
    Reference,
}

/// Their names on the command line.
const DECODINGS: [(ImageDecoding, &str); 2] =
    [(ImageDecoding::Corrected, "corrected"), (ImageDecoding::Reference, "reference")];

impl fmt::Display for ImageDecoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(DECODINGS.iter().find(|(decoding, _)| decoding == self).map_or("", |(_, name)| name))
    }
}

impl FromStr for ImageDecoding {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = DECODINGS.iter().find(|(_, name)| *name == text);
        found.map(|(decoding, _)| *decoding).ok_or_else(|| Error::Unsupported {
            what: "image decoding".to_owned(),
            found: text.to_owned(),
            supported: DECODINGS.map(|(_, name)| name).join(", "),
        })
    }
}

#[cfg(feature = "fs")]
impl Image {
    /// Reads and decodes an image file: PNG, JPEG, WebP, GIF, TIFF or BMP.
    ///
    /// # Errors
    /// As [`Self::open_as`].
    pub fn open(path: impl AsRef<std::path::Path>) -> Result<Self> {
        Self::open_as(path, ImageDecoding::Corrected)
    }

    /// As [`Self::open`], with a choice where viewers and the reference differ.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read; [`Error::Image`] if it is not a regular file or too large, without
    /// reading it; otherwise as [`decode`].
    pub fn open_as(path: impl AsRef<std::path::Path>, decoding: ImageDecoding) -> Result<Self> {
        let name = path.as_ref().display().to_string();
        decode_as(&name, &read_file(path.as_ref(), &name)?, decoding)
    }
}

/// The bytes of an image file. Of a file that is not an image, reads only the start.
#[cfg(feature = "fs")]
fn read_file(path: &std::path::Path, name: &str) -> Result<Vec<u8>> {
    use std::io::Read;

    let io = |error: std::io::Error| Error::io(name, &error);
    let fail = |reason: String| Err(Error::Image { name: name.to_owned(), reason });
    // Before it is opened: opening a pipe waits for a writer.
    let metadata = std::fs::metadata(path).map_err(io)?;
    if metadata.is_dir() {
        return fail("this is a folder, expected an image file".to_owned());
    }
    if !metadata.is_file() {
        return fail("this is not a regular file but a pipe, a socket or a device".to_owned());
    }
    let length = metadata.len();
    if length > MAX_FILE {
        return fail(format!("the file has {length} bytes, more than any image that can be read ({MAX_FILE})"));
    }
    let mut file = std::fs::File::open(path).map_err(io)?.take(MAX_FILE);
    let mut bytes = Vec::new();
    file.by_ref().take(HEAD as u64).read_to_end(&mut bytes).map_err(io)?;
    format_of(name, &bytes)?;
    file.read_to_end(&mut bytes).map_err(io)?;
    Ok(bytes)
}

/// Decodes an image file as viewers show it; of an animation, the first frame. `name` is used in messages.
///
/// # Errors
/// [`Error::Image`] if the bytes are not an image in a supported format, are damaged or end early, or if the image is
/// too large (before anything of that size is allocated).
pub fn decode(name: &str, bytes: &[u8]) -> Result<Image> {
    decode_as(name, bytes, ImageDecoding::Corrected)
}

/// As [`decode`], with a choice where viewers and the reference differ.
///
/// # Errors
/// As [`decode`].
pub fn decode_as(name: &str, bytes: &[u8], decoding: ImageDecoding) -> Result<Image> {
    decode_within(name, bytes, decoding, MAX_PIXELS)
}

/// As [`decode_as`], for images of at most `max_pixels` pixels. A host that decodes images of strangers can bound the
/// memory that each takes.
///
/// # Errors
/// As [`decode`]; [`Error::Image`] for more pixels, before they are decoded.
pub fn decode_within(name: &str, bytes: &[u8], decoding: ImageDecoding, max_pixels: u64) -> Result<Image> {
    let image = decode_samples(name, bytes, decoding, max_pixels)?;
    let (width, height) = (image.width() as usize, image.height() as usize);
    let pixels = match decoding {
        ImageDecoding::Corrected => corrected_rgb(image),
        ImageDecoding::Reference => reference_rgb(image),
    };
    Image::new(width, height, pixels).map_err(|error| Error::Image { name: name.to_owned(), reason: error.to_string() })
}

/// Decodes a mask as OpenAI's API defines it: white where an image with transparency is more transparent than opaque,
/// and black elsewhere. An image without transparency is the mask itself.
///
/// # Errors
/// As [`decode_within`].
pub fn decode_mask_within(name: &str, bytes: &[u8], max_pixels: u64) -> Result<Image> {
    let image = decode_samples(name, bytes, ImageDecoding::Corrected, max_pixels)?;
    let (width, height) = (image.width() as usize, image.height() as usize);
    let mut pixels = None;
    if image.color().has_alpha() {
        let alpha: Vec<u8> = image.to_rgba8().pixels().map(|pixel| pixel.0[3]).collect();
        if alpha.iter().any(|alpha| *alpha < 255) {
            pixels = Some(alpha.iter().flat_map(|alpha| [if *alpha < 128 { 255 } else { 0 }; 3]).collect());
        }
    }
    Image::new(width, height, pixels.unwrap_or_else(|| corrected_rgb(image)))
        .map_err(|error| Error::Image { name: name.to_owned(), reason: error.to_string() })
}

/// The samples of an image file, upright.
fn decode_samples(name: &str, bytes: &[u8], decoding: ImageDecoding, max_pixels: u64) -> Result<DynamicImage> {
    let max_pixels = max_pixels.min(MAX_PIXELS);
    let fail = |reason: String| Error::Image { name: name.to_owned(), reason };
    let format = format_of(name, bytes)?;
    let damaged = |error| {
        let reason = match error {
            ImageError::IoError(error) if error.kind() == ErrorKind::UnexpectedEof => cut_off(bytes),
            ImageError::Unsupported(_) if format == ImageFormat::Tiff => tiff_kinds::describe(bytes),
            // Some decoders end their messages in a new line.
            error => error.to_string().split_whitespace().collect::<Vec<_>>().join(" "),
        };
        fail(format!("cannot be decoded as {}: {reason}", format_name(format)))
    };
    if ends_early(format, bytes) {
        return Err(damaged(ImageError::IoError(ErrorKind::UnexpectedEof.into())));
    }
    let check_size = |width: u32, height: u32, total_bytes: u64| {
        let too_large = width > MAX_SIDE
            || height > MAX_SIDE
            || u64::from(width) * u64::from(height) > max_pixels
            || total_bytes > MAX_BYTES;
        match too_large {
            true => Err(fail(format!(
                "{width} x {height} pixels exceed the limits ({MAX_SIDE} a side, {max_pixels} in total, {MAX_BYTES} \
                 bytes decoded): scale it down first"
            ))),
            false => Ok(()),
        }
    };
    let mut limits = Limits::no_limits();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_BYTES + MAX_WORKING_BYTES);
    let mut reader = ImageReader::with_format(Cursor::new(without_trailer(format, bytes)), format);
    reader.limits(limits);
    let (mut image, orientation) = match reader.into_decoder() {
        Ok(mut decoder) => {
            let (width, height) = decoder.dimensions();
            check_size(width, height, decoder.total_bytes())?;
            // Unreadable metadata is ignored.
            let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
            (DynamicImage::from_decoder(decoder).map_err(damaged)?, orientation)
        }
        Err(error) if format == ImageFormat::Tiff => {
            use tiff_kinds::Failure;
            match tiff_kinds::decode(bytes, check_size) {
                Ok(Some(image)) => image,
                Ok(None) | Err(Failure::Decoder(tiff::TiffError::UnsupportedError(_))) => return Err(damaged(error)),
                Err(Failure::Decoder(error)) => return Err(damaged(from_tiff(error))),
                Err(Failure::Size(error)) => return Err(error),
            }
        }
        Err(error) => return Err(damaged(error)),
    };
    // Pillow applies it to TIFF only.
    if decoding == ImageDecoding::Corrected || format == ImageFormat::Tiff {
        image.apply_orientation(orientation);
    }
    Ok(image)
}

fn from_tiff(error: tiff::TiffError) -> ImageError {
    match error {
        tiff::TiffError::IoError(error) => ImageError::IoError(error),
        other => ImageError::Decoding(DecodingError::new(ImageFormat::Tiff.into(), other)),
    }
}

/// The format of a file by its first bytes.
fn format_of(name: &str, start: &[u8]) -> Result<ImageFormat> {
    let fail = |reason: String| Error::Image { name: name.to_owned(), reason };
    if let Some(reason) = crate::io::lfs_pointer(start) {
        return Err(fail(reason));
    }
    if let Some((_, format, advice)) = UNREADABLE.iter().find(|(is, ..)| is(start)) {
        return Err(fail(format!("this is {format}, which mgm cannot read: {advice}; supported: {FORMATS}")));
    }
    let format = image::guess_format(start)
        .map_err(|_| fail(format!("{}, not an image; supported: {FORMATS}", describe(start))))?;
    if !format.reading_enabled() {
        return Err(fail(format!("{} is not supported; convert it to one of {FORMATS}", format_name(format))));
    }
    Ok(format)
}

fn cut_off(bytes: &[u8]) -> String {
    format!("the file is cut off after {} bytes: copy or download it again", bytes.len())
}

/// The high byte of a 16-bit sample, as Pillow scales them.
fn high_byte(sample: u16) -> u8 {
    (sample >> 8) as u8
}

/// A sample of opacity `alpha` over white, rounded as Pillow's `Image.paste` does.
fn over_white(sample: u8, alpha: u8) -> u8 {
    let sum = u32::from(sample) * u32::from(alpha) + 255 * (255 - u32::from(alpha)) + 128;
    ((sum + (sum >> 8)) >> 8) as u8
}

/// Converts pixels of four samples to three in their own memory.
fn in_place(mut samples: Vec<u8>, convert: impl Fn([u8; 4]) -> [u8; 3]) -> Vec<u8> {
    let pixels = samples.len() / 4;
    for pixel in 0..pixels {
        if let Some(four) = samples.get(4 * pixel..).and_then(|rest| rest.first_chunk()).copied()
            && let Some(three) = samples.get_mut(3 * pixel..3 * pixel + 3)
        {
            three.copy_from_slice(&convert(four));
        }
    }
    samples.truncate(3 * pixels);
    samples.shrink_to_fit();
    samples
}

/// The samples of `image` with transparency over white and every 16-bit sample scaled.
fn corrected_rgb(image: DynamicImage) -> Vec<u8> {
    let blend = |[r, g, b, a]: [u8; 4]| [over_white(r, a), over_white(g, a), over_white(b, a)];
    match image {
        DynamicImage::ImageRgba8(pixels) => in_place(pixels.into_raw(), blend),
        DynamicImage::ImageLumaA8(pixels) => pixels.pixels().flat_map(|p| [over_white(p.0[0], p.0[1]); 3]).collect(),
        DynamicImage::ImageLuma16(pixels) => pixels.as_raw().iter().flat_map(|&value| [high_byte(value); 3]).collect(),
        DynamicImage::ImageLumaA16(pixels) => {
            pixels.pixels().flat_map(|p| [over_white(high_byte(p.0[0]), high_byte(p.0[1])); 3]).collect()
        }
        DynamicImage::ImageRgba16(pixels) => pixels.pixels().flat_map(|p| blend(p.0.map(high_byte))).collect(),
        DynamicImage::ImageRgba32F(_) => corrected_rgb(image.into_rgba8().into()),
        // Without transparency.
        other => reference_rgb(other),
    }
}

/// The samples of `image` as in Pillow's `convert("RGB")`.
fn reference_rgb(image: DynamicImage) -> Vec<u8> {
    let gray = |value: u8| [value; 3];
    match image {
        DynamicImage::ImageRgb8(pixels) => pixels.into_raw(),
        DynamicImage::ImageRgba8(pixels) => in_place(pixels.into_raw(), |[r, g, b, _]| [r, g, b]),
        DynamicImage::ImageLuma8(pixels) => pixels.as_raw().iter().flat_map(|&value| gray(value)).collect(),
        DynamicImage::ImageLumaA8(pixels) => pixels.pixels().flat_map(|p| gray(p.0[0])).collect(),
        // Pillow clips 16-bit grey instead of scaling it, although it scales every other 16-bit format.
        DynamicImage::ImageLuma16(pixels) => {
            pixels.as_raw().iter().flat_map(|&value| gray(value.min(255) as u8)).collect()
        }
        DynamicImage::ImageLumaA16(pixels) => pixels.pixels().flat_map(|p| gray(high_byte(p.0[0]))).collect(),
        DynamicImage::ImageRgb16(pixels) => pixels.as_raw().iter().copied().map(high_byte).collect(),
        DynamicImage::ImageRgba16(pixels) => {
            pixels.pixels().flat_map(|p| [p.0[0], p.0[1], p.0[2]]).map(high_byte).collect()
        }
        // Floating-point samples of TIFF.
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
