//! Which files of a repository on the Hugging Face Hub make a model. Repositories have weights for other programs too,
//! and several formats and variants of the same weights.

use serde::Deserialize;

use super::bundle::MANIFEST;
use super::checkpoint::{MODEL_FILES, OPEN_CLIP_FILES};
use super::sdxl::{MODEL_INDEX, component_folders};
use crate::{Error, Result};

/// The configuration of a checkpoint and of a tower.
const CONFIG: &str = "config.json";
/// Files that describe a model or its training but are not needed to run it.
const METADATA: [&str; 5] =
    [".gitattributes", "README.md", "trainer_state.json", "all_results.json", "train_results.json"];
/// The most file names in a message.
const MAX_NAMES: usize = 12;

/// The files of a model in repository `repo`, by the names of all its files: those of a bundle, of Stable Diffusion XL
/// in diffusers' layout (its f16 variant, if there is one), or of a checkpoint without its towers.
///
/// # Errors
/// [`Error::MissingFile`] if the names are those of no such model.
pub fn model_files<'a>(repo: &str, names: &[&'a str]) -> Result<Vec<&'a str>> {
    if names.contains(&MANIFEST) {
        return Ok(names.iter().copied().filter(|name| !METADATA.contains(name)).collect());
    }
    if names.contains(&MODEL_INDEX) {
        return sdxl_files(repo, names);
    }
    if !names.contains(&CONFIG) {
        let gguf: Vec<&str> = names.iter().copied().filter(|name| name.ends_with(".gguf")).collect();
        let hint = if gguf.is_empty() {
            format!("not a checkpoint, bundle, GGUF or diffusers repository; it has {}", listed(names))
        } else {
            format!("choose one of its GGUF files: {}", listed(&gguf))
        };
        return Err(Error::MissingFile { file: format!("{repo}/{CONFIG}"), hint });
    }
    let files = folder_files(names, "", MODEL_FILES);
    if !files.iter().any(|name| is_weights(name)) {
        return Err(Error::MissingFile {
            file: format!("{repo}/{}", MODEL_FILES[0]),
            hint: format!("the repository has no supported weights; it has {}", listed(names)),
        });
    }
    Ok(files)
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
fn listed(names: &[&str]) -> String {
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
    let names: Names = serde_json::from_slice(config)
        .map_err(|error| Error::Config { file: file.to_owned(), reason: error.to_string() })?;
    let known = |path: String| {
        let name = path.rsplit('/').find(|part| !part.is_empty()).unwrap_or_default();
        let (repo, formats) = match name {
            "clip-vit-large-patch14-336" => ("openai/clip-vit-large-patch14-336", MODEL_FILES),
            "openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup" => {
                ("laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup", OPEN_CLIP_FILES)
            }
            _ => {
                return Err(Error::Unsupported {
                    what: format!("vision tower in {file}"),
                    found: path.clone(),
                    supported: "clip-vit-large-patch14-336 and openclip-convnext-large-d-320".to_owned(),
                });
            }
        };
        Ok(Tower { repo, folder: format!("OpenAI/{name}"), formats })
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
