//! Image files: reading, and writing PNG files that record how they were generated.

use std::path::{Path, PathBuf};

use mgm::diffusion::png_metadata::ImageSettings;
use mgm::image::{Image, decode, encode_png};
use mgm::{Error, Result};

use crate::files::{io_error, read};

/// Reads and decodes an image file.
pub fn read_image(path: &Path) -> Result<Image> {
    let bytes = read(path)?;
    decode(&path.display().to_string(), &bytes)
}

/// Writes a PNG file. The text chunk "parameters" holds the settings as other programs write them, "mgm" holds them as
/// JSON.
///
/// # Errors
/// [`Error::Io`].
pub fn save_png(path: &Path, image: &Image, settings: &ImageSettings) -> Result<()> {
    let json = serde_json::to_string(settings)
        .map_err(|error| Error::Image { name: "PNG".to_owned(), reason: error.to_string() })?;
    let bytes = encode_png(image, &[("parameters", &settings.parameters()), ("mgm", &json)])?;
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
