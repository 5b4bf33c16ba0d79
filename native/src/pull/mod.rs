//! `mgm pull`: downloads a model from the Hugging Face Hub, or from the mirror in HF_ENDPOINT: a checkpoint with its
//! vision towers, a bundle, or Stable Diffusion XL.

mod download;
mod hub;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use clap::Args;
use indicatif::ProgressBar;
use mgm::weights::bundle::MANIFEST;
use mgm::weights::checkpoint::{MODEL_FILES, OPEN_CLIP_FILES};
use mgm::weights::config::MgmConfig;
use mgm::weights::sdxl::{MODEL_INDEX, component_folders};
use mgm::{Error, Result};
use serde::Deserialize;

use crate::files::io_error;
use crate::{CliError, progress, sdxl};
use download::{Client, RemoteFile};
use hub::{Hub, Snapshot};

#[derive(Debug, Args)]
pub struct PullArgs {
    /// The repository, such as YanweiLi/MGM-2B (set HF_TOKEN for private and gated ones)
    #[arg(value_name = "OWNER/NAME")]
    repo: String,
    /// Download only this file, such as a GGUF file; repeat for several [default: all files of the model]
    #[arg(long, value_name = "NAME")]
    file: Vec<String>,
    /// Branch, tag or commit
    #[arg(long, value_name = "REVISION", default_value = "main")]
    revision: String,
    /// Folder to download to; one folder per model and tower
    #[arg(long, value_name = "DIR", default_value = "models")]
    out: PathBuf,
    /// Don't download the vision towers that the model refers to
    #[arg(long)]
    no_towers: bool,
    /// Number of parallel downloads
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=32))]
    connections: u16,
    /// Timeout for connecting, for a response, and for each 16 MiB of a file, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
}

const CONFIG: &str = "config.json";

/// The keys of `config.json` that name the towers.
#[derive(Deserialize, Default)]
struct Towers {
    mm_vision_tower: Option<String>,
    mm_vision_tower_aux: Option<String>,
}

/// Files of one repository and the folder to download them to.
struct Job {
    snapshot: Snapshot,
    files: Vec<RemoteFile>,
    folder: PathBuf,
}

pub async fn run(arguments: PullArgs) -> Result<(), CliError> {
    let client = Client::new(Duration::from_secs(arguments.timeout));
    let hub = Hub::from_environment(&client)?;
    let snapshot = hub.list(&arguments.repo, &arguments.revision)?;
    let files = select(&snapshot, &arguments.file)?;
    let name = arguments.repo.rsplit('/').next().unwrap_or(&arguments.repo);
    let model = Job { folder: arguments.out.join(name), files, snapshot };

    // The configuration comes first: it names the towers, whose sizes count towards the progress bar's total.
    let mut jobs = Vec::new();
    let config = model.files.iter().find(|file| file.name == CONFIG);
    if let (Some(config), false, true) = (config, arguments.no_towers, arguments.file.is_empty()) {
        let path = model.folder.join(CONFIG);
        client.fetch(&hub.file(&model.snapshot, config), config, &path, &ProgressBar::hidden())?;
        for tower in towers_of(&path)? {
            let folder = arguments.out.join(tower.folder);
            let snapshot = hub.list(tower.repo, "main")?;
            let files = weights_and_configs(&snapshot.files, "", tower.weights);
            jobs.push(Job { snapshot, files, folder });
        }
    }
    jobs.insert(0, model);
    fetch_all(&client, &hub, &jobs, arguments.connections.into())?;

    let mut out = std::io::stdout().lock();
    for job in &jobs {
        let megabytes = job.files.iter().map(|file| file.size).sum::<u64>() / 1_000_000;
        let unchecked = job.files.iter().filter(|file| file.digest.is_none()).count();
        let note = if unchecked == 0 { String::new() } else { format!(", {unchecked} without a checksum") };
        let (folder, repo) = (job.folder.display(), &job.snapshot.repo);
        writeln!(out, "{folder}: {} files of {repo}, {megabytes} MB{note}", job.files.len())?;
    }
    let folder = &jobs[0].folder;
    match arguments.file.first() {
        // A single file is a model to chat with only if it is a GGUF file.
        Some(file) if file.ends_with(".gguf") => writeln!(out, "try: mgm chat {}", folder.join(file).display())?,
        Some(_) => {}
        None if sdxl::is_sdxl(folder).await? => {
            writeln!(out, "try: mgm generate {} --prompt TEXT", folder.display())?;
        }
        None if is_chat_model(folder) => writeln!(out, "try: mgm chat {}", folder.display())?,
        None => {}
    }
    Ok(())
}

/// Whether a folder is a bundle or has a language model's configuration. That of a vision tower alone has not.
fn is_chat_model(folder: &Path) -> bool {
    let config = std::fs::read(folder.join(CONFIG)).is_ok_and(|bytes| MgmConfig::parse(CONFIG, &bytes).is_ok());
    config || folder.join(MANIFEST).exists()
}

/// Downloads all files, `connections` at a time. After a failure, no new downloads start.
fn fetch_all(client: &Client, hub: &Hub<'_>, jobs: &[Job], connections: usize) -> Result<()> {
    let mut queue: Vec<(&Job, &RemoteFile)> =
        jobs.iter().flat_map(|job| job.files.iter().map(move |file| (job, file))).collect();
    queue.sort_by_key(|(_, file)| std::cmp::Reverse(file.size));
    let bar = progress::bytes(queue.iter().map(|(_, file)| file.size).sum(), "pulling");
    let next = AtomicUsize::new(0);
    let failure = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..connections.min(queue.len()) {
            scope.spawn(|| {
                while let Some((job, file)) = queue.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let path = job.folder.join(&file.name);
                    if let Err(error) = client.fetch(&hub.file(&job.snapshot, file), file, &path, &bar) {
                        next.store(queue.len(), Ordering::Relaxed);
                        // A poisoned lock still holds the first error.
                        failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(error);
                    }
                }
            });
        }
    });
    bar.finish_and_clear();
    failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).map_or(Ok(()), Err)
}

/// The files to download: the requested ones, or those of a bundle or checkpoint.
fn select(snapshot: &Snapshot, requested: &[String]) -> Result<Vec<RemoteFile>> {
    if !requested.is_empty() {
        let find = |name: &String| {
            snapshot.files.iter().find(|file| file.name == *name).cloned().ok_or_else(|| Error::MissingFile {
                file: format!("{}/{name}", snapshot.repo),
                hint: format!("the repository has {}", names(&snapshot.files)),
            })
        };
        return requested.iter().map(find).collect();
    }
    if snapshot.files.iter().any(|file| file.name == MANIFEST) {
        return Ok(snapshot.files.iter().filter(|file| !is_metadata(&file.name)).cloned().collect());
    }
    if snapshot.files.iter().any(|file| file.name == MODEL_INDEX) {
        return sdxl_files(snapshot);
    }
    if !snapshot.files.iter().any(|file| file.name == CONFIG) {
        let gguf: Vec<RemoteFile> =
            snapshot.files.iter().filter(|file| file.name.ends_with(".gguf")).cloned().collect();
        let hint = if gguf.is_empty() {
            format!("not a checkpoint, bundle, GGUF or diffusers repository; it has {}", names(&snapshot.files))
        } else {
            format!("select a GGUF file with --file: {}", names(&gguf))
        };
        return Err(Error::MissingFile { file: format!("{}/{CONFIG}", snapshot.repo), hint });
    }
    let files = weights_and_configs(&snapshot.files, "", MODEL_FILES);
    if !files.iter().any(|file| is_weights(&file.name)) {
        return Err(Error::MissingFile {
            file: format!("{}/{}", snapshot.repo, MODEL_FILES[0]),
            hint: format!("the repository has no supported weights; it has {}", names(&snapshot.files)),
        });
    }
    Ok(files)
}

/// The files of a Stable Diffusion XL model in diffusers' layout. Repositories have weights for other programs too, and
/// most have an f16 variant, which is half the size.
fn sdxl_files(snapshot: &Snapshot) -> Result<Vec<RemoteFile>> {
    let mut selected: Vec<RemoteFile> =
        snapshot.files.iter().filter(|file| file.name == MODEL_INDEX).cloned().collect();
    for (folder, formats) in component_folders(true) {
        let formats: Vec<&str> = formats.iter().map(String::as_str).collect();
        let files = weights_and_configs(&snapshot.files, &format!("{folder}/"), &formats);
        if !formats.is_empty() && !files.iter().any(|file| is_weights(&file.name)) {
            return Err(Error::MissingFile {
                file: format!("{}/{folder}", snapshot.repo),
                hint: format!(
                    "the repository has no supported weights of this part of Stable Diffusion XL; it has {}",
                    names(&snapshot.files)
                ),
            });
        }
        selected.extend(files);
    }
    Ok(selected)
}

/// The configurations and tokenizers directly in a folder (`""`, or a name with `/`), and its weights in the first of
/// these formats that exists.
fn weights_and_configs(files: &[RemoteFile], folder: &str, formats: &[&str]) -> Vec<RemoteFile> {
    let inside = || {
        let named = files.iter().filter_map(|file| Some((file.name.strip_prefix(folder)?, file)));
        named.filter(|(name, _)| !name.contains('/'))
    };
    let format = formats.iter().copied().find(|format| inside().any(|(name, _)| name == *format));
    let is_part = |name: &str| match format {
        Some(format) if format.contains(".index.") => format == name || is_shard(name, format),
        _ => format == Some(name),
    };
    let is_config = |name: &str| {
        [".json", ".model", ".txt", ".jinja"].iter().any(|end| name.ends_with(end))
            && !is_metadata(name)
            && !name.contains(".index.")
    };
    inside().filter(|(name, _)| is_part(name) || is_config(name)).map(|(_, file)| file.clone()).collect()
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

/// Files that describe the model or its training but are not needed to run it.
fn is_metadata(name: &str) -> bool {
    matches!(name, ".gitattributes" | "README.md" | "trainer_state.json" | "all_results.json" | "train_results.json")
}

/// The first file names, for messages.
fn names(files: &[RemoteFile]) -> String {
    const MAX: usize = 12;
    let shown: Vec<&str> = files.iter().take(MAX).map(|file| file.name.as_str()).collect();
    let more = files.len().saturating_sub(MAX);
    match (shown.is_empty(), more) {
        (true, _) => "no files".to_owned(),
        (_, 0) => shown.join(", "),
        _ => format!("{} and {more} more", shown.join(", ")),
    }
}

/// A vision tower: its repository, and the folder where checkpoints expect it.
struct Tower {
    repo: &'static str,
    folder: PathBuf,
    weights: &'static [&'static str],
}

/// The towers named in a `config.json`. It has the authors' local folder names; their instructions list the
/// repositories that these were copied from.
fn towers_of(config: &Path) -> Result<Vec<Tower>> {
    let bytes = std::fs::read(config).map_err(|error| io_error(config, error))?;
    let towers: Towers = mgm::json::from_slice(&bytes).map_err(|error| io_error(config, error))?;
    let known = |path: String| {
        let name = path.rsplit('/').next().unwrap_or(&path).to_owned();
        let (repo, weights) = match name.as_str() {
            "clip-vit-large-patch14-336" => ("openai/clip-vit-large-patch14-336", MODEL_FILES),
            "openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup" => {
                ("laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup", OPEN_CLIP_FILES)
            }
            _ => {
                return Err(Error::Unsupported {
                    what: format!("vision tower in {}", config.display()),
                    found: path,
                    supported:
                        "clip-vit-large-patch14-336 and openclip-convnext-large-d-320; use --no-towers and download \
                         the tower separately"
                            .to_owned(),
                });
            }
        };
        Ok(Tower { repo, folder: Path::new("OpenAI").join(name), weights })
    };
    [towers.mm_vision_tower, towers.mm_vision_tower_aux].into_iter().flatten().map(known).collect()
}
