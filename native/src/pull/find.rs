//! Finds models in the cache by their names.

use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use mgm::io::DiskFolder;
use mgm::weights::bundle::MANIFEST;
use mgm::weights::index::parse_index;
use mgm::weights::sdxl::MODEL_INDEX;
use mgm::{Error, Result};

use super::cache::RepoCache;
use super::download::{Client, RemoteFile};
use super::environment::Environment;
use super::hub::Hub;
use super::model_name::ModelName;
use super::proxy::Proxies;
use super::select::{select, weights_and_configs};
use super::{CLIP_TOKENIZER, CONFIG, CONNECTIONS, Plan, Request, TIMEOUT, TOKENIZER_FILES, towers_of};
use crate::files::read_regular;

/// A model on this machine, and what belongs to it but is elsewhere.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LocalModel {
    /// A folder, or a file.
    pub path: PathBuf,
    /// The folder of the low-resolution tower, if it is in the cache.
    pub clip: Option<PathBuf>,
    /// The folder of the high-resolution tower, if it is in the cache.
    pub convnext: Option<PathBuf>,
    /// The folder of CLIP's tokenizer, for Stable Diffusion XL in one file.
    pub tokenizer: Option<PathBuf>,
}

/// Finds the model that an argument means: the file or folder at this path, or else the model of this name in the
/// cache. If it is not there, asks on a terminal whether to download it.
///
/// # Errors
/// [`Error::MissingFile`] if there is no such path, and no such model in the cache; those of a download.
pub fn locate(argument: &Path) -> Result<LocalModel> {
    let argument = &as_written_on_windows(argument);
    refuse_several_snapshots(argument)?;
    let local = LocalModel { path: argument.to_owned(), ..LocalModel::default() };
    let name = match argument.to_str().map(ModelName::parse) {
        Some(Ok(name)) if !argument.exists() => name,
        // A path that the reader opens, or reports as missing.
        _ => return Ok(local),
    };
    let environment = Environment::read()?;
    if let Some(found) = in_cache(&environment, &name)? {
        return Ok(found);
    }
    if !environment.offline && std::io::stdin().is_terminal() && std::io::stderr().is_terminal() {
        return ask(&environment, &name);
    }
    Err(missing(&name, environment.offline))
}

/// A path in which backslashes separate folders, where they would be characters of a name.
fn as_written_on_windows(path: &Path) -> PathBuf {
    let with_slashes = path.to_str().filter(|text| text.contains('\\')).map(|text| text.replace('\\', "/"));
    match with_slashes.map(PathBuf::from) {
        Some(other) if !path.exists() && other.exists() => other,
        _ => path.to_owned(),
    }
}

/// Fails for a repository's folder of the Hugging Face cache, copied without the reference to one of its snapshots.
fn refuse_several_snapshots(path: &Path) -> Result<()> {
    let is_model = [CONFIG, MODEL_INDEX, MANIFEST].iter().any(|file| path.join(file).exists());
    if is_model || DiskFolder::new(path).path() != path {
        return Ok(());
    }
    let snapshots = path.join("snapshots").read_dir().into_iter().flatten().flatten();
    let mut snapshots: Vec<PathBuf> = snapshots.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    snapshots.sort();
    let [first, _, ..] = &snapshots[..] else { return Ok(()) };
    let (count, first) = (snapshots.len(), first.display());
    let hint = format!("it would say which of {count} snapshots is meant: pass the folder of one, such as {first}");
    Err(Error::MissingFile { file: path.join("refs/main").display().to_string(), hint })
}

fn missing(name: &ModelName, offline: bool) -> Error {
    let hint = match offline {
        true => "there is no such file or folder, and no such model in the cache; HF_HUB_OFFLINE is set".to_owned(),
        false => format!(
            "there is no such file or folder, and no such model in the cache; to download it from the Hugging Face \
             Hub: mgm pull {name}"
        ),
    };
    Error::MissingFile { file: name.to_string(), hint }
}

/// Asks on the terminal whether to download a model, and does so.
fn ask(environment: &Environment, name: &ModelName) -> Result<LocalModel> {
    let client = Client::new(Duration::from_secs(TIMEOUT), Proxies::read()?);
    let hub = Hub::new(&client, environment);
    let request =
        Request { name: name.clone(), files: Vec::new(), out: None, towers: true, connections: CONNECTIONS.into() };
    let plan = Plan::new(&client, &hub, environment, &request)?;
    let gigabytes = plan.missing_bytes(environment) as f64 / 1e9;
    let mut answer = String::new();
    let mut stderr = std::io::stderr();
    let asked = write!(stderr, "mgm: {name} is not on this machine. Download {gigabytes:.1} GB? [y/N] ");
    let answered = asked.and_then(|()| stderr.flush()).and_then(|()| std::io::stdin().lock().read_line(&mut answer));
    if answered.is_err() || !["y", "yes"].contains(&answer.trim().to_lowercase().as_str()) {
        return Err(missing(name, false));
    }
    pollster::block_on(plan.fetch(&client, &hub, environment, &request))?;
    in_cache(environment, name)?.ok_or_else(|| missing(name, false))
}

/// Finds a model in the cache. `None` if it is not there, or only a part of it.
///
/// # Errors
/// [`Error::MissingFile`] if the name leaves open which of several files is meant.
pub fn in_cache(environment: &Environment, name: &ModelName) -> Result<Option<LocalModel>> {
    let Some(cache) = &environment.cache else { return Ok(None) };
    let repo = RepoCache::new(cache, &name.repo);
    let Some(commit) = repo.commit(name.revision()) else { return Ok(None) };
    let (folder, files) = (repo.snapshot(&commit), repo.files(&commit));
    let selection = match select(&name.repo, &files, name.choice.as_ref()) {
        Ok(selection) => selection,
        Err(error) if files.iter().filter(|file| file.name.ends_with(".gguf")).count() > 1 => return Err(error),
        Err(_) => return Ok(None),
    };
    if !has_all_shards(&folder, &selection.files) {
        return Ok(None);
    }
    let mut found = LocalModel { path: folder.clone(), ..LocalModel::default() };
    match &selection.main {
        Some(file) => {
            found.path = folder.join(file);
            let has_all = |snapshot: &PathBuf| TOKENIZER_FILES.iter().all(|name| snapshot.join(name).exists());
            found.tokenizer = snapshot_of(cache, CLIP_TOKENIZER).map(|(folder, _)| folder).filter(has_all);
        }
        // The reader of the model reports unknown towers and invalid configurations.
        None => {
            for tower in towers_of(&folder.join(CONFIG)).unwrap_or_default() {
                let has_weights = |(_, files): &(PathBuf, Vec<RemoteFile>)| {
                    let selected = weights_and_configs(files, tower.formats);
                    selected.iter().any(|file| tower.formats.contains(&file.name.as_str()))
                };
                let folder = snapshot_of(cache, tower.repo).filter(has_weights).map(|(folder, _)| folder);
                if tower.high_resolution {
                    found.convnext = folder;
                } else {
                    found.clip = folder;
                }
            }
        }
    }
    Ok(Some(found))
}

fn snapshot_of(cache: &Path, repo: &str) -> Option<(PathBuf, Vec<RemoteFile>)> {
    let repo = RepoCache::new(cache, repo);
    let commit = repo.commit("main")?;
    Some((repo.snapshot(&commit), repo.files(&commit)))
}

/// Whether the shards that the indices list are there. Other programs download single files.
fn has_all_shards(folder: &Path, files: &[RemoteFile]) -> bool {
    files.iter().filter(|file| file.name.ends_with(".index.json")).all(|index| {
        let path = folder.join(&index.name);
        let listed = read_regular(&path).ok().and_then(|bytes| parse_index(&index.name, &bytes).ok());
        // The reader of the model reports an index that cannot be read.
        let around = path.parent().unwrap_or(folder);
        listed.is_none_or(|shards| shards.keys().all(|shard| around.join(shard).exists()))
    })
}
