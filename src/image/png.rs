//! Encoding images as PNG files.

use super::buffer::Image;
use crate::{Error, Result};

#[cfg(feature = "fs")]
impl Image {
    /// Writes a PNG file.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be written.
    pub fn save(&self, path: impl AsRef<std::path::Path>) -> Result<()> {
        let bytes = encode_png(self, &[])?;
        std::fs::write(&path, bytes).map_err(|error| Error::io(path.as_ref().display().to_string(), &error))
    }
}

/// The bytes of a PNG file with text chunks (keyword, text).
///
/// # Errors
/// [`Error::Image`] if a keyword is not valid in PNG.
pub fn encode_png(image: &Image, text: &[(&str, &str)]) -> Result<Vec<u8>> {
    let failed = |error: png::EncodingError| Error::Image { name: "PNG".to_owned(), reason: error.to_string() };
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, image.width() as u32, image.height() as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    for (keyword, text) in text {
        // Readers disagree on the encoding of plain text chunks beyond ASCII.
        if text.is_ascii() && !text.starts_with('{') {
            encoder.add_text_chunk((*keyword).to_owned(), (*text).to_owned()).map_err(failed)?;
        } else {
            encoder.add_itxt_chunk((*keyword).to_owned(), (*text).to_owned()).map_err(failed)?;
        }
    }
    let mut writer = encoder.write_header().map_err(failed)?;
    writer.write_image_data(image.data()).map_err(failed)?;
    writer.finish().map_err(failed)?;
    Ok(bytes)
}
