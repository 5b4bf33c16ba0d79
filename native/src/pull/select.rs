//! Selects the files of a model among those of a repository.

use mgm::weights::checkpoint::MODEL_FILES;
use mgm::weights::repository::{folder_files, folder_model, listed, no_model};
use mgm::weights::sdxl::{ADAPTER_CONFIG, component_folders};
use mgm::{Error, Result};

use super::CONFIG;
use super::download::RemoteFile;
use super::model_name::Choice;

/// The weights of a LoRA in diffusers' layout.
const LORA: &str = "pytorch_lora_weights.safetensors";
/// The weights of PEFT's adapter.
const ADAPTER: &str = "adapter_model.safetensors";

/// The files of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    pub files: Vec<RemoteFile>,
    /// The file to open, if the model is not a folder.
    pub main: Option<String>,
}

impl Selection {
    fn folder(files: Vec<RemoteFile>) -> Self {
        Self { files, main: None }
    }

    /// A file, with the other parts of a split one.
    fn file(files: Vec<RemoteFile>) -> Self {
        Self { main: files.first().map(|file| file.name.clone()), files }
    }
}

/// Selects a bundle, a checkpoint, a Stable Diffusion XL model, a GGUF file or a single safetensors file. `all`: the
/// files of the repository.
///
/// # Errors
/// [`Error::MissingFile`] if there is none, or several GGUF files and none is chosen.
pub fn select(repo: &str, all: &[RemoteFile], choice: Option<&Choice>) -> Result<Selection> {
    match choice {
        Some(Choice::File(name)) => return named(repo, all, name),
        Some(Choice::Tag(tag)) => return tagged(repo, all, tag),
        None => {}
    }
    let paths = all_names(all);
    if let Some(files) = folder_model(repo, &paths)?.or_else(|| part_of_an_image_model(&paths)) {
        return Ok(Selection::folder(with_names(all, &files)));
    }
    let gguf = gguf_models(all);
    let mut single: Vec<&RemoteFile> = all.iter().filter(|file| is_single_file(&file.name)).collect();
    if single.iter().any(|file| file.name == LORA) {
        // The others are the same for other programs.
        single.retain(|file| file.name == LORA);
    }
    let hint = match (gguf.as_slice(), single.as_slice()) {
        ([model], _) => return Ok(Selection::file(model.clone())),
        ([], [file]) => return Ok(Selection::file(vec![(*file).clone()])),
        ([], []) => return Err(no_model(repo, &paths)),
        ([], files) => {
            let files: Vec<RemoteFile> = files.iter().map(|file| (*file).clone()).collect();
            format!("select a file with --file, or as {repo}/FILE: {}", names(&files))
        }
        (models, _) => {
            let first: Vec<RemoteFile> = models.iter().filter_map(|model| model.first().cloned()).collect();
            format!("select a GGUF file with --file, or as {repo}:Q4_K_M: {}", names(&first))
        }
    };
    let missing = if paths.contains(&CONFIG) { MODEL_FILES[0] } else { CONFIG };
    Err(Error::MissingFile { file: format!("{repo}/{missing}"), hint })
}

/// The folder of a network in diffusers' layout, such as an autoencoder, or of PEFT's adapter.
fn part_of_an_image_model<'a>(names: &[&'a str]) -> Option<Vec<&'a str>> {
    let folders = component_folders(true);
    let networks: Vec<&str> = folders
        .iter()
        .filter(|(folder, _)| *folder == "vae")
        .flat_map(|(_, formats)| formats)
        .map(String::as_str)
        .collect();
    [(CONFIG, networks.as_slice()), (ADAPTER_CONFIG, &[ADAPTER])].into_iter().find_map(|(config, formats)| {
        let files = folder_files(names, "", formats);
        let has_weights = files.iter().any(|name| name.ends_with(".safetensors") || name.ends_with(".bin"));
        (names.contains(&config) && has_weights).then_some(files)
    })
}

/// A file by its name, with the other parts of a split GGUF file.
fn named(repo: &str, all: &[RemoteFile], name: &str) -> Result<Selection> {
    let missing =
        || Error::MissingFile { file: format!("{repo}/{name}"), hint: format!("the repository has {}", names(all)) };
    let file = all.iter().find(|file| file.name == name).ok_or_else(missing)?;
    let whole = gguf_models(all).into_iter().find(|model| model.iter().any(|part| part.name == name));
    Ok(Selection::file(whole.unwrap_or_else(|| vec![file.clone()])))
}

/// The GGUF file of a quantisation: of those whose name ends with it, the one with the shortest name.
fn tagged(repo: &str, all: &[RemoteFile], tag: &str) -> Result<Selection> {
    let wanted = tag.to_lowercase();
    let models = gguf_models(all);
    let stem =
        |model: &[RemoteFile]| model.first().and_then(|file| stem_of(&file.name)).unwrap_or_default().to_lowercase();
    let matches = |model: &&Vec<RemoteFile>| {
        let stem = stem(model);
        let Some(before) = stem.strip_suffix(&wanted) else { return false };
        // `_` is a part of the names of quantisations, so it separates only before a whole one: q, iq, f, bf, ud.
        let separated = before.ends_with('_') && wanted.starts_with(['q', 'i', 'f', 'b', 'u']);
        before.is_empty() || before.ends_with(['-', '.', '/']) || separated
    };
    let found = models.iter().filter(matches).min_by_key(|model| stem(model).len());
    found.cloned().map(Selection::file).ok_or_else(|| {
        let first: Vec<RemoteFile> = models.iter().filter_map(|model| model.first().cloned()).collect();
        Error::MissingFile {
            file: format!("{repo}:{tag}"),
            hint: format!("the GGUF files of the repository are {}", names(&first)),
        }
    })
}

/// The language models in GGUF files: each one file, or the parts of one in order.
fn gguf_models(all: &[RemoteFile]) -> Vec<Vec<RemoteFile>> {
    let mut models: Vec<(String, Vec<RemoteFile>)> = Vec::new();
    for file in all {
        let Some(stem) = stem_of(&file.name) else { continue };
        let base = stem.rsplit('/').next().unwrap_or(stem).to_lowercase();
        // Image encoders for llama.cpp, and statistics of quantisation.
        if base.contains("mmproj") || base.contains("imatrix") {
            continue;
        }
        match models.iter_mut().find(|(other, _)| other == stem) {
            Some((_, parts)) => parts.push(file.clone()),
            None => models.push((stem.to_owned(), vec![file.clone()])),
        }
    }
    let in_order = |(_, mut parts): (String, Vec<RemoteFile>)| {
        parts.sort_by(|a, b| a.name.cmp(&b.name));
        parts
    };
    models.into_iter().map(in_order).collect()
}

/// The name of a GGUF file without its extension and number: `model-00001-of-00003.gguf` is a part of `model`.
fn stem_of(name: &str) -> Option<&str> {
    let stem = name.strip_suffix(".gguf")?;
    let whole = || {
        let (rest, count) = stem.rsplit_once("-of-")?;
        let (whole, number) = rest.rsplit_once('-')?;
        let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
        (is_number(number) && is_number(count)).then_some(whole)
    };
    Some(whole().unwrap_or(stem))
}

/// Whether a file may be a model on its own.
fn is_single_file(name: &str) -> bool {
    name.ends_with(".safetensors") && !name.contains('/') && !name.contains("-of-")
}

/// The first file names, for messages.
fn names(files: &[RemoteFile]) -> String {
    listed(&all_names(files))
}

fn all_names(files: &[RemoteFile]) -> Vec<&str> {
    files.iter().map(|file| file.name.as_str()).collect()
}

/// The configurations and the weights directly in a repository: see [`folder_files`].
pub fn weights_and_configs(all: &[RemoteFile], formats: &[&str]) -> Vec<RemoteFile> {
    with_names(all, &folder_files(&all_names(all), "", formats))
}

/// The files with these names.
fn with_names(all: &[RemoteFile], names: &[&str]) -> Vec<RemoteFile> {
    let find = |name: &&str| all.iter().find(|file| file.name == **name).cloned();
    names.iter().filter_map(find).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(names: &[&str]) -> Vec<RemoteFile> {
        let file = |name: &&str| RemoteFile { name: (*name).to_owned(), size: 1, digest: None, etag: None };
        names.iter().map(file).collect()
    }

    fn selected(all: &[&str], choice: Option<Choice>) -> std::result::Result<(Option<String>, Vec<String>), String> {
        let selection = select("a/b", &files(all), choice.as_ref()).map_err(|error| error.to_string())?;
        Ok((selection.main, selection.files.into_iter().map(|file| file.name).collect()))
    }

    fn some(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn gguf_files_are_chosen_by_their_quantisation() {
        let repo = [
            "README.md",
            "config.json",
            "model-Q4_K_M.gguf",
            "model-imat-Q4_K_M.gguf",
            "model-Q8_0.gguf",
            "mmproj-model-f16.gguf",
            "Q6_K/model-Q6_K-00001-of-00002.gguf",
            "Q6_K/model-Q6_K-00002-of-00002.gguf",
        ];
        let tag = |tag: &str| selected(&repo, Some(Choice::Tag(tag.to_owned())));
        for name in ["Q4_K_M", "q4_k_m"] {
            assert_eq!(tag(name), Ok((Some("model-Q4_K_M.gguf".to_owned()), some(&["model-Q4_K_M.gguf"]))));
        }
        assert_eq!(tag("Q6_K"), Ok((Some(repo[6].to_owned()), some(&repo[6..]))));
        // The end of a quantisation's name is no quantisation.
        for name in ["K_M", "4_K_M", "Q5_K_M", "f16"] {
            let error = tag(name).expect_err("no such file");
            assert!(error.contains("model-Q8_0.gguf"), "{name}: {error}");
        }
        let error = selected(&repo, None).expect_err("several");
        assert!(error.contains("a/b:Q4_K_M") && error.contains("model-Q8_0.gguf"), "{error}");
        let one = ["config.json", "model-Q8_0.gguf", "mmproj-model-f16.gguf"];
        assert_eq!(selected(&one, None), Ok((Some(one[1].to_owned()), some(&one[1..2]))));
        let part = Some(Choice::File(repo[7].to_owned()));
        assert_eq!(selected(&repo, part), Ok((Some(repo[6].to_owned()), some(&repo[6..]))));
    }

    #[test]
    fn a_single_safetensors_file_is_a_model_too() {
        let repo = ["README.md", "xl.safetensors", "vae/diffusion_pytorch_model.safetensors"];
        assert_eq!(selected(&repo, None), Ok((Some(repo[1].to_owned()), some(&repo[1..2]))));
        let error = selected(&["a.safetensors", "b.safetensors"], None).expect_err("several");
        assert!(error.contains("a.safetensors, b.safetensors"), "{error}");
    }

    #[test]
    fn parts_of_an_image_model_are_selected_whole() {
        let vae =
            ["config.json", "diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors", "x.safetensors"];
        assert_eq!(selected(&vae, None), Ok((None, some(&["config.json", "diffusion_pytorch_model.safetensors"]))));
        let peft = ["README.md", "adapter_config.json", "adapter_model.safetensors"];
        assert_eq!(selected(&peft, None), Ok((None, some(&peft[1..]))));
        let lora = ["style.safetensors", "pytorch_lora_weights.safetensors"];
        assert_eq!(selected(&lora, None), Ok((Some(lora[1].to_owned()), some(&lora[1..]))));
    }

    #[test]
    fn shards_need_no_index() {
        let repo = ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "x.bin"];
        assert_eq!(selected(&repo, None), Ok((None, some(&repo[..3]))));
    }
}
