//! Checks of an image file before it is decoded: formats that mgm cannot decode, and truncated files.

use image::ImageFormat;

/// A test of a file's first bytes, the format that it recognises, and what to do with such a file.
type Unreadable = (fn(&[u8]) -> bool, &'static str, &'static str);

/// Formats that mgm recognises but cannot decode.
pub(super) const UNREADABLE: [Unreadable; 7] = [
    (is_avif, "an AVIF image", "convert it to PNG, for example with `avifdec image.avif image.png`"),
    (
        is_heic,
        "a HEIC image, as iPhones and some cameras save them",
        "convert it to JPEG, for example with `heif-convert image.heic image.jpg` (on an iPhone, Settings > Camera > \
         Formats > Most Compatible saves JPEG)",
    ),
    (is_jpeg_xl, "a JPEG XL image", "convert it to PNG, for example with `djxl image.jxl image.png`"),
    (is_jpeg_2000, "a JPEG 2000 image", "convert it to PNG, for example with `opj_decompress`"),
    (is_svg, "an SVG drawing", "render it to PNG, for example with `rsvg-convert -o image.png image.svg`"),
    (|start| start.starts_with(b"%PDF-"), "a PDF document", "render a page to PNG, for example with `pdftoppm -png`"),
    (|start| start.starts_with(b"8BPS"), "a Photoshop document", "export it as PNG"),
];

/// The brands of an ISO base media file (its `ftyp` box), from the major one.
fn brands(start: &[u8]) -> impl Iterator<Item = &[u8]> {
    let is_ftyp = start.get(4..8) == Some(b"ftyp");
    let length = start.first_chunk().map_or(0, |length| u32::from_be_bytes(*length) as usize).clamp(16, 64);
    // The minor version stands between the major brand and the compatible ones.
    let brands = start.get(8..).unwrap_or_default().chunks_exact(4).take((length - 8) / 4);
    brands.enumerate().filter(move |(index, _)| is_ftyp && *index != 1).map(|(_, brand)| brand)
}

fn is_avif(start: &[u8]) -> bool {
    brands(start).any(|brand| matches!(brand, b"avif" | b"avis"))
}

fn is_heic(start: &[u8]) -> bool {
    let heic = |brand: &[u8]| {
        matches!(
            brand,
            b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx" | b"hevm" | b"hevs" | b"mif1" | b"msf1"
        )
    };
    brands(start).any(heic)
}

fn is_jpeg_xl(start: &[u8]) -> bool {
    start.starts_with(b"\xff\x0a") || start.starts_with(b"\0\0\0\x0cJXL \r\n\x87\n")
}

fn is_jpeg_2000(start: &[u8]) -> bool {
    start.starts_with(b"\0\0\0\x0cjP  \r\n\x87\n") || start.starts_with(b"\xff\x4f\xff\x51")
}

fn is_svg(start: &[u8]) -> bool {
    let text = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
    text.starts_with(b"<svg") || (text.starts_with(b"<?xml") && start.windows(4).any(|word| word == b"<svg"))
}

/// Whether a file is only the beginning of an image. Decoders of these formats fill in what is missing.
pub(super) fn ends_early(format: ImageFormat, bytes: &[u8]) -> bool {
    let end = match format {
        ImageFormat::Jpeg => jpeg_end(bytes),
        ImageFormat::Png => png_end(bytes),
        ImageFormat::WebP => riff_end(bytes),
        ImageFormat::Gif => gif_image_end(bytes),
        _ => Some(()),
    };
    end.is_none()
}

/// Follows the segments to the end-of-image marker. `None` if the file ends before.
fn jpeg_end(bytes: &[u8]) -> Option<()> {
    let mut at = 2;
    loop {
        // Entropy-coded data, in which 0xff is followed by 0 or a restart marker, and fill bytes.
        at += bytes.get(at..)?.iter().position(|byte| *byte == 0xff)? + 1;
        match bytes.get(at)? {
            0xff => {}
            0 | 1 | 0xd0..=0xd7 => at += 1,
            0xd9 => return Some(()),
            _ => {
                let length = bytes.get(at + 1..at + 3)?;
                at += 1 + usize::from(u16::from_be_bytes([length[0], length[1]])).max(2);
            }
        }
    }
}

/// Follows the chunks to the last one, IEND. `None` if the file ends before.
fn png_end(bytes: &[u8]) -> Option<()> {
    let mut rest = bytes.get(8..)?;
    loop {
        let length = u32::from_be_bytes(*rest.first_chunk()?) as usize;
        let kind = rest.get(4..8)?;
        let next = rest.get(length.checked_add(12)?..)?;
        if kind == b"IEND" {
            return Some(());
        }
        rest = next;
    }
}

/// Follows the blocks to the end of the first image, the only one that is decoded. `None` if the file ends before.
fn gif_image_end(bytes: &[u8]) -> Option<()> {
    let table = |packed: u8| if packed & 0x80 == 0 { 0 } else { 3 << ((packed & 7) + 1) };
    let mut at = 13 + table(*bytes.get(10)?);
    loop {
        let is_image = match bytes.get(at)? {
            0x2c => {
                // The descriptor, and the size of the first codes.
                at += 11 + table(*bytes.get(at + 9)?);
                true
            }
            0x21 => {
                at += 2;
                false
            }
            // No image: the decoder says so.
            _ => return Some(()),
        };
        loop {
            let length = usize::from(*bytes.get(at)?);
            at += 1 + length;
            if length == 0 {
                break;
            }
        }
        if is_image {
            return Some(());
        }
    }
}

/// `None` if the file is shorter than its RIFF header says, or that than one of its chunks.
fn riff_end(bytes: &[u8]) -> Option<()> {
    let length = u32::from_le_bytes(*bytes.get(4..)?.first_chunk()?) as usize;
    let end = 8 + bytes.get(8..)?.get(..length)?.len();
    (end < whole_chunks(bytes) + 8).then_some(())
}

/// Where the last complete chunk of a RIFF file ends.
fn whole_chunks(bytes: &[u8]) -> usize {
    let mut at = 12;
    while let Some(size) = bytes.get(at + 4..).and_then(<[u8]>::first_chunk) {
        let size = u32::from_le_bytes(*size) as usize;
        if bytes.len() - at - 8 < size {
            break;
        }
        // Chunks begin at even offsets.
        at += 8 + size + size % 2;
    }
    at.min(bytes.len())
}

/// A file without what follows the image: the decoder of WebP takes it for a chunk, and allocates what that promises.
pub(super) fn without_trailer(format: ImageFormat, bytes: &[u8]) -> &[u8] {
    if format == ImageFormat::WebP { &bytes[..whole_chunks(bytes)] } else { bytes }
}
