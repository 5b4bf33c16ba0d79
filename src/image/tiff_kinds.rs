//! Kinds of TIFF that the `image` crate does not read: palettes, gray with alpha, gray of 2 or 4 bits.

use std::io::Cursor;

use image::metadata::Orientation;
use image::{DynamicImage, ImageBuffer};
use tiff::decoder::{Decoder, DecodingResult, Limits};
use tiff::tags::Tag;
use tiff::{ColorType, TiffError};

use crate::Error;

/// Values of the tag PhotometricInterpretation.
const BLACK_IS_ZERO: u16 = 1;
const PALETTE: u16 = 3;

/// Values of the tag ExtraSamples that mean opacity.
const ALPHA: [u16; 2] = [1, 2];

pub(super) enum Failure {
    /// The caller's check of the size.
    Size(Error),
    Decoder(TiffError),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Size(error)
    }
}

impl From<TiffError> for Failure {
    fn from(error: TiffError) -> Self {
        Self::Decoder(error)
    }
}

/// An image of one of these kinds with its orientation; `None` for another kind. `check` gets width, height and bytes
/// before anything of that size is allocated.
pub(super) fn decode(
    bytes: &[u8],
    check: impl Fn(u32, u32, u64) -> Result<(), Error>,
) -> Result<Option<(DynamicImage, Orientation)>, Failure> {
    // The `tiff` crate refuses palettes; as gray it reads their indices.
    let palette = find(bytes, 262).filter(|(_, photometric)| *photometric == PALETTE);
    let as_gray = palette.map(|(at, _)| {
        let mut bytes = bytes.to_vec();
        let value = if is_big_endian(&bytes) { BLACK_IS_ZERO.to_be_bytes() } else { BLACK_IS_ZERO.to_le_bytes() };
        if let Some(place) = bytes.get_mut(at..at + 2) {
            place.copy_from_slice(&value);
        }
        bytes
    });
    let mut decoder = Decoder::new(Cursor::new(as_gray.as_deref().unwrap_or(bytes)))?;
    let (width, height) = decoder.dimensions()?;
    let color = decoder.colortype()?;
    let bits = color.bit_depth();
    let samples = match color {
        ColorType::Gray(2 | 4) => 1,
        ColorType::Gray(1 | 8) if palette.is_some() => 1,
        ColorType::Multiband { bit_depth: 8, num_samples: 2 } => 2,
        ColorType::Multiband { bit_depth: 16, num_samples: 2 } if palette.is_none() => 2,
        _ => return Ok(None),
    };
    let layout = decoder.image_buffer_layout()?;
    if layout.planes != 1 {
        return Ok(None);
    }
    // A palette makes four bytes of each sample, twice.
    check(width, height, (u64::from(width) * u64::from(height)).saturating_mul(8))?;
    let mut limits = Limits::unlimited();
    // Also the limit of a tag's values, 32 bytes each.
    limits.decoding_buffer_size = layout.complete_len.max(1 << 20);
    limits.intermediate_buffer_size = layout.complete_len.max(bytes.len());
    limits.ifd_value_size = bytes.len();
    decoder = decoder.with_limits(limits);
    let colors = decoder.find_tag_unsigned_vec::<u16>(Tag::ColorMap)?.unwrap_or_default();
    let extra = decoder.find_tag_unsigned_vec::<u16>(Tag::ExtraSamples)?.unwrap_or_default();
    let orientation = decoder.find_tag_unsigned::<u8>(Tag::Orientation).ok().flatten();
    let orientation = orientation.and_then(Orientation::from_exif).unwrap_or(Orientation::NoTransforms);
    let values = match decoder.read_image()? {
        DecodingResult::U8(packed) => unpack(&packed, width as usize * samples, bits),
        DecodingResult::U16(values) if palette.is_none() => {
            let image = ImageBuffer::from_raw(width, height, values).map(DynamicImage::ImageLumaA16);
            return Ok(image.map(|image| (without(image, &extra), orientation)));
        }
        _ => return Ok(None),
    };
    let image = match (palette, samples) {
        (None, 1) => {
            let scale = 255 / ((1u16 << bits) - 1) as u8;
            let values = values.iter().map(|value| value.saturating_mul(scale)).collect();
            ImageBuffer::from_raw(width, height, values).map(DynamicImage::ImageLuma8)
        }
        (None, _) => ImageBuffer::from_raw(width, height, values).map(DynamicImage::ImageLumaA8),
        (Some(_), _) => {
            let count = colors.len() / 3;
            let color = |pixel: &[u8]| {
                let index = usize::from(*pixel.first()?);
                let channel = |channel: usize| Some((colors.get(channel * count + index)? >> 8) as u8);
                let opacity = pixel.get(1).copied().unwrap_or(u8::MAX);
                (index < count).then_some(())?;
                Some([channel(0)?, channel(1)?, channel(2)?, opacity])
            };
            let pixels: Option<Vec<[u8; 4]>> = values.chunks_exact(samples).map(color).collect();
            let pixels = pixels.and_then(|pixels| ImageBuffer::from_raw(width, height, pixels.concat()));
            pixels.map(DynamicImage::ImageRgba8)
        }
    };
    Ok(image.map(|image| (if samples == 2 { without(image, &extra) } else { image }, orientation)))
}

/// The image without its last channel, unless that is its opacity.
fn without(image: DynamicImage, extra: &[u16]) -> DynamicImage {
    if extra.first().is_some_and(|extra| ALPHA.contains(extra)) {
        return image;
    }
    match image {
        DynamicImage::ImageLumaA8(_) => image.into_luma8().into(),
        DynamicImage::ImageLumaA16(_) => image.into_luma16().into(),
        other => other.into_rgb8().into(),
    }
}

/// Samples of `bits` bits, of which whole rows take whole bytes.
fn unpack(packed: &[u8], row: usize, bits: u8) -> Vec<u8> {
    let per_byte = usize::from(8 / bits);
    let sample = |byte: u8, index: usize| {
        let shift = 8 - usize::from(bits) * (index % per_byte + 1);
        ((u16::from(byte) >> shift) & ((1 << bits) - 1)) as u8
    };
    let rows = packed.chunks_exact(row.div_ceil(per_byte).max(1));
    let unpacked = rows.flat_map(|bytes| (0..row).map(move |index| sample(bytes[index / per_byte], index)));
    unpacked.collect()
}

/// What kind of TIFF this is, and what to do with it, for a message.
pub(super) fn describe(bytes: &[u8]) -> String {
    let value = |tag| find(bytes, tag).map(|(_, value)| value);
    let colors = match value(262) {
        Some(0 | BLACK_IS_ZERO) => "gray",
        Some(2) => "RGB",
        Some(PALETTE) => "a palette",
        Some(5) => "CMYK",
        Some(6) => "YCbCr",
        Some(8..=10) => "L*a*b*",
        Some(32803 | 34892) => "a camera's raw samples",
        _ => "unknown colours",
    };
    let samples = value(277).unwrap_or(1);
    // More than two are elsewhere.
    let bits = match value(258) {
        Some(bits) if samples <= 2 => format!(" of {bits} bits"),
        _ => String::new(),
    };
    let compression = value(259).unwrap_or(1);
    format!(
        "mgm does not read this kind of TIFF ({colors}, samples per pixel: {samples}{bits}, compression {compression}): \
         convert it to PNG with 8 bits, for example with `magick image.tiff -depth 8 image.png`"
    )
}

fn is_big_endian(bytes: &[u8]) -> bool {
    bytes.starts_with(b"MM")
}

/// Where a classic TIFF's first directory has a 16-bit value, and that value.
fn find(bytes: &[u8], tag: u16) -> Option<(usize, u16)> {
    let big = is_big_endian(bytes);
    let short = |at: usize| {
        let bytes = *bytes.get(at..)?.first_chunk()?;
        Some(if big { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
    };
    let directory = *bytes.get(4..)?.first_chunk()?;
    let directory = if big { u32::from_be_bytes(directory) } else { u32::from_le_bytes(directory) } as usize;
    (short(2)? == 42).then_some(())?;
    let entry = |index: usize| directory.checked_add(2)?.checked_add(12 * index);
    let mut entries = (0..usize::from(short(directory)?)).map_while(entry);
    let at = entries.find(|at| short(*at) == Some(tag) && short(*at + 2) == Some(3))?;
    Some((at + 8, short(at + 8)?))
}
