//! Image files: reading, and writing PNG files that record how they were generated.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use mgm::diffusion::png_metadata::ImageSettings;
use mgm::image::{Image, ImageDecoding, encode_png};
use mgm::{Error, Result};

use crate::files::{io_error, part_of, replace};

/// The most bytes that [`check_space`] writes.
const MAX_CHECKED: usize = 256 << 20;
/// Bytes of a PNG file that are not pixels.
const MARGIN: usize = 16 << 10;

/// Reads and decodes an image file.
///
/// # Errors
/// [`Error::MissingFile`], otherwise as [`Image::open_as`].
pub fn read_image(path: &Path, decoding: ImageDecoding) -> Result<Image> {
    Image::open_as(path, decoding).map_err(|error| match error {
        Error::Io { file, kind: ErrorKind::NotFound, .. } => {
            Error::MissingFile { file, hint: "check the path".to_owned() }
        }
        error => error,
    })
}

/// Writes a PNG file. The text chunk "parameters" holds the settings as other programs write them, "mgm" holds them as
/// JSON.
///
/// # Errors
/// [`Error::Io`]; an older file of this name is then unchanged.
pub fn save_png(path: &Path, image: &Image, settings: &ImageSettings) -> Result<()> {
    let json = serde_json::to_string(settings)
        .map_err(|error| Error::Image { name: "PNG".to_owned(), reason: error.to_string() })?;
    let bytes = encode_png(image, &[("parameters", &settings.parameters()), ("mgm", &json)])?;
    replace(&target_of(path)?, &bytes).map_err(|error| io_error(path, error))
}

/// Checks that images of `size` pixels can be written, each to one of `files`: writes as many bytes next to them, and
/// deletes them.
///
/// # Errors
/// [`Error::Io`] with the first file that cannot be written.
pub fn check_space(files: &[PathBuf], (width, height): (usize, usize)) -> Result<()> {
    // Noise compresses to more than its own size. The file also holds the settings.
    let pixels = width.saturating_mul(height).saturating_mul(3);
    let bytes = vec![0; pixels.saturating_add(pixels / 1000 + MARGIN).min(MAX_CHECKED)];
    let mut parts: Vec<PathBuf> = Vec::new();
    let mut checked = Ok(());
    for path in files.iter().take((MAX_CHECKED / bytes.len().max(1)).max(1)) {
        checked = target_of(path).and_then(|target| {
            let part = part_of(&target);
            parts.push(part.clone());
            std::fs::write(&part, &bytes).map_err(|error| io_error(path, error))
        });
        if checked.is_err() {
            break;
        }
    }
    parts.iter().for_each(|part| drop(std::fs::remove_file(part)));
    checked
}

/// The file to write for `path`: if that is a link, its target, so that the link remains.
fn target_of(path: &Path) -> Result<PathBuf> {
    if path.is_dir() {
        return Err(Error::InvalidArgument(format!("{}: a folder has this name", path.display())));
    }
    Ok(std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()))
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
