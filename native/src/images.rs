//! Image files: reading, and writing PNG files that record how they were generated.

use std::path::{Path, PathBuf};

use mgm::diffusion::png_metadata::ImageSettings;
use mgm::image::{Image, decode};
use mgm::{Error, Result};

use crate::files::io_error;

/// Reads and decodes an image file.
pub fn read_image(path: &Path) -> Result<Image> {
    let bytes = std::fs::read(path).map_err(|error| io_error(path, error))?;
    decode(&path.display().to_string(), &bytes)
}

/// Encodes a PNG file. The text chunk "parameters" holds the settings as other programs write them, "mgm" holds them as JSON.
pub fn encode_png(image: &Image, settings: Option<&ImageSettings>) -> Result<Vec<u8>> {
    let failed = |error: png::EncodingError| Error::Image { name: "PNG".to_owned(), reason: error.to_string() };
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, image.width() as u32, image.height() as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    if let Some(settings) = settings {
        let parameters = settings.parameters();
        // A tEXt chunk is Latin-1 by specification, but readers differ beyond ASCII.
        if parameters.is_ascii() {
            encoder.add_text_chunk("parameters".to_owned(), parameters).map_err(failed)?;
        } else {
            encoder.add_itxt_chunk("parameters".to_owned(), parameters).map_err(failed)?;
        }
        let json = serde_json::to_string(settings)
            .map_err(|error| Error::Image { name: "PNG".to_owned(), reason: error.to_string() })?;
        encoder.add_itxt_chunk("mgm".to_owned(), json).map_err(failed)?;
    }
    let mut writer = encoder.write_header().map_err(failed)?;
    writer.write_image_data(image.data()).map_err(failed)?;
    writer.finish().map_err(failed)?;
    Ok(bytes)
}

/// Writes a PNG file.
pub fn save_png(path: &Path, image: &Image, settings: &ImageSettings) -> Result<()> {
    let bytes = encode_png(image, Some(settings))?;
    std::fs::write(path, bytes).map_err(|error| io_error(path, error))
}

/// The files for `count` images: `out` itself for one, numbered files for several.
///
/// # Errors
/// [`Error::InvalidArgument`] if `out` is not a PNG file in an existing folder.
pub fn output_files(out: &Path, count: usize) -> Result<Vec<PathBuf>> {
    let bad = |reason: String| Err(Error::InvalidArgument(reason));
    if !out.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png")) {
        return bad(format!(
            "--out {}: images are written as PNG files, expected a name ending in .png",
            out.display()
        ));
    }
    let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
        return bad(format!("--out {}: there is no folder {}", out.display(), folder.display()));
    }
    if count == 1 {
        return Ok(vec![out.to_owned()]);
    }
    Ok((1..=count).map(|number| numbered(out, number)).collect())
}

/// `image-3.png` for `image.png` and 3.
pub fn numbered(out: &Path, number: usize) -> PathBuf {
    let stem = out.file_stem().unwrap_or_default().to_string_lossy();
    let extension = out.extension().unwrap_or_default().to_string_lossy();
    out.with_file_name(format!("{stem}-{number}.{extension}"))
}
