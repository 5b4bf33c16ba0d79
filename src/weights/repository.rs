//! Selects the files of a model in a repository on the Hugging Face Hub. Repositories also contain files for other
//! programs, and the same weights in several formats and variants.

use serde::Deserialize;

use super::bundle::MANIFEST;
use super::checkpoint::{MODEL_FILES, OPEN_CLIP_FILES};
use super::sdxl::{MODEL_INDEX, component_folders};
use crate::{Error, Result, json};

/// The configuration of a checkpoint and of a tower.
const CONFIG: &str = "config.json";
/// Files that describe a model or its training but are not needed to run it.
const METADATA: [&str; 5] =
    [".gitattributes", "README.md", "trainer_state.json", "all_results.json", "train_results.json"];
/// Maximum number of file names in a message.
const MAX_NAMES: usize = 12;

/// The files of a model in repository `repo`, by the names of all its files: those of a bundle, of Stable Diffusion XL
/// in diffusers' layout (its f16 variant, if there is one), or of a checkpoint without its towers.
///
/// # Errors
/// [`Error::MissingFile`] if the names are those of no such model.
pub fn model_files<'a>(repo: &str, names: &[&'a str]) -> Result<Vec<&'a str>> {
    if let Some(files) = folder_model(repo, names)? {
        return Ok(files);
    }
    let gguf: Vec<&str> = names.iter().copied().filter(|name| name.ends_with(".gguf")).collect();
    if gguf.is_empty() || names.contains(&CONFIG) {
        return Err(no_model(repo, names));
    }
    let hint = format!("choose one of its GGUF files: {}", listed(&gguf));
    Err(Error::MissingFile { file: format!("{repo}/{CONFIG}"), hint })
}

/// As [`model_files`], but `None` for GGUF files, for a single safetensors file, and without a model.
///
/// # Errors
/// [`Error::MissingFile`] for Stable Diffusion XL without weights of one of its parts.
pub fn folder_model<'a>(repo: &str, names: &[&'a str]) -> Result<Option<Vec<&'a str>>> {
    if names.contains(&MANIFEST) {
        return Ok(Some(names.iter().copied().filter(|name| !METADATA.contains(name)).collect()));
    }
    if names.contains(&MODEL_INDEX) {
        return sdxl_files(repo, names).map(Some);
    }
    let files = folder_files(names, "", MODEL_FILES);
    let is_checkpoint = names.contains(&CONFIG) && files.iter().any(|name| is_weights(name));
    Ok(is_checkpoint.then_some(files))
}

/// The error for a repository without any model.
pub fn no_model(repo: &str, names: &[&str]) -> Error {
    let (missing, what) = if names.contains(&CONFIG) {
        (MODEL_FILES[0], "the repository has no supported weights")
    } else {
        (CONFIG, "not a checkpoint, bundle, GGUF or diffusers repository")
    };
    Error::MissingFile { file: format!("{repo}/{missing}"), hint: format!("{what}; it has {}", listed(names)) }
}

fn sdxl_files<'a>(repo: &str, names: &[&'a str]) -> Result<Vec<&'a str>> {
    let mut selected: Vec<&str> = names.iter().copied().filter(|name| *name == MODEL_INDEX).collect();
    for (folder, formats) in component_folders(true) {
        let formats: Vec<&str> = formats.iter().map(String::as_str).collect();
        let files = folder_files(names, &format!("{folder}/"), &formats);
        if !formats.is_empty() && !files.iter().any(|name| is_weights(name)) {
            return Err(Error::MissingFile {
                file: format!("{repo}/{folder}"),
                hint: format!(
                    "the repository has no supported weights of this part of Stable Diffusion XL; it has {}",
                    listed(names)
                ),
            });
        }
        selected.extend(files);
    }
    Ok(selected)
}

/// The configurations and tokenizers directly in a folder (`""`, or a name with `/`), and its weights in the first of
/// these formats that exists.
pub fn folder_files<'a>(names: &[&'a str], folder: &str, formats: &[&str]) -> Vec<&'a str> {
    let inside = || {
        let named = names.iter().filter_map(|path| Some((path.strip_prefix(folder)?, *path)));
        named.filter(|(name, _)| !name.contains('/'))
    };
    let format = formats.iter().copied().find(|format| inside().any(|(name, _)| name == *format));
    // Shards whose index is missing.
    let format =
        format.or_else(|| formats.iter().copied().find(|format| inside().any(|(name, _)| is_shard(name, format))));
    let is_part = |name: &str| match format {
        Some(format) if format.contains(".index.") => format == name || is_shard(name, format),
        _ => format == Some(name),
    };
    let is_config = |name: &str| {
        [".json", ".model", ".txt", ".jinja"].iter().any(|end| name.ends_with(end))
            && !METADATA.contains(&name)
            && !name.contains(".index.")
    };
    inside().filter(|(name, _)| is_part(name) || is_config(name)).map(|(_, path)| path).collect()
}

/// Whether a file is a shard of an index: `model-00001-of-00002.safetensors` of `model.safetensors.index.json`. A
/// variant's name is before or after the numbers: `model.fp16-00001-of-00002.safetensors`.
fn is_shard(name: &str, index: &str) -> bool {
    if !index.contains(".index.") {
        return false;
    }
    const VARIANT: &str = ".fp16";
    let mut parts = index.split('.').filter(|part| *part != &VARIANT[1..]);
    let (Some(stem), Some(extension)) = (parts.next(), parts.next()) else { return false };
    let plain = name.replacen(VARIANT, "", 1);
    name.contains(VARIANT) == index.contains(VARIANT)
        && plain.strip_prefix(stem).is_some_and(|rest| rest.starts_with('-') && rest.contains("-of-"))
        && plain.ends_with(&format!(".{extension}"))
}

fn is_weights(name: &str) -> bool {
    name.ends_with(".safetensors") || name.ends_with(".bin")
}

/// The first file names, for messages.
pub fn listed(names: &[&str]) -> String {
    let shown = names.get(..MAX_NAMES).unwrap_or(names).join(", ");
    match names.len().saturating_sub(MAX_NAMES) {
        _ if names.is_empty() => "no files".to_owned(),
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// A vision tower: its repository, and the folder where a checkpoint expects it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tower {
    /// Its repository.
    pub repo: &'static str,
    /// Its folder, relative to the one with the checkpoint's folder.
    pub folder: String,
    /// File names of its weights, in order of preference.
    pub formats: &'static [&'static str],
    /// Whether it is the high-resolution tower.
    pub high_resolution: bool,
}

/// The towers that a `config.json` names. It has the authors' local folder names; their instructions list the
/// repositories that these were copied from. `file` is its name for messages.
///
/// # Errors
/// [`Error::Config`] if it is malformed, [`Error::Unsupported`] for another tower.
pub fn towers(file: &str, config: &[u8]) -> Result<Vec<Tower>> {
    #[derive(Deserialize)]
    struct Names {
        mm_vision_tower: Option<String>,
        mm_vision_tower_aux: Option<String>,
    }
    let names: Names =
        json::from_slice(config).map_err(|error| Error::Config { file: file.to_owned(), reason: error.to_string() })?;
    let known = |path: String| {
        let name = path.rsplit('/').find(|part| !part.is_empty()).unwrap_or_default();
        let (repo, formats, high_resolution) = match name {
            "clip-vit-large-patch14-336" => ("openai/clip-vit-large-patch14-336", MODEL_FILES, false),
            "openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup" => {
                ("laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup", OPEN_CLIP_FILES, true)
            }
            _ => {
                return Err(Error::Unsupported {
                    what: format!("vision tower in {file}"),
                    found: path.clone(),
                    supported: "clip-vit-large-patch14-336 and openclip-convnext-large-d-320".to_owned(),
                });
            }
        };
        Ok(Tower { repo, folder: format!("OpenAI/{name}"), formats, high_resolution })
    };
    [names.mm_vision_tower, names.mm_vision_tower_aux].into_iter().flatten().map(known).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_format_is_chosen_with_its_shards_and_configurations() {
        let names = [
            ".gitattributes",
            "README.md",
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "pytorch_model-00001-of-00001.bin",
            "pytorch_model.bin.index.json",
            "onnx/model.onnx",
            "tokenizer.model",
            "trainer_state.json",
        ];
        let expected = [
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.model",
        ];
        assert_eq!(model_files("o/n", &names).unwrap(), expected);
        let message = model_files("o/n", &["a.gguf", "README.md"]).unwrap_err().to_string();
        assert!(message.contains("o/n/config.json") && message.contains("a.gguf"), "{message}");
    }

    #[test]
    fn towers_are_found_by_the_last_part_of_their_paths() {
        let config = br#"{"mm_vision_tower": "model_zoo/OpenAI/clip-vit-large-patch14-336", "mm_vision_tower_aux":
            "model_zoo/OpenAI/openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup/", "other": 1}"#;
        let towers = towers("config.json", config).unwrap();
        assert_eq!(towers[0].repo, "openai/clip-vit-large-patch14-336");
        assert_eq!(towers[1].folder, "OpenAI/openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup");
        assert!(matches!(
            super::towers("config.json", br#"{"mm_vision_tower": "siglip"}"#),
            Err(Error::Unsupported { .. })
        ));
    }
}
