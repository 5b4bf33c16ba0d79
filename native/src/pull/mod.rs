//! `mgm pull`: downloads a model, and the towers it names, from the Hugging Face Hub or a mirror of it.

mod download;
mod hub;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use indicatif::ProgressBar;
use mgm::weights::bundle::MANIFEST;
use mgm::weights::checkpoint::{MODEL_FILES, OPEN_CLIP_FILES};
use mgm::{Error, Result};
use mgm_native::files::io_error;
use serde::Deserialize;

use crate::args::PullArgs;
use crate::{Failure, progress};
use download::Client;
use hub::{Hub, HubFile, Listing};

const CONFIG: &str = "config.json";

/// The two keys of `config.json` that name towers.
#[derive(Deserialize, Default)]
struct Towers {
    mm_vision_tower: Option<String>,
    mm_vision_tower_aux: Option<String>,
}

/// One repository and the folder that its files go to.
struct Job {
    listing: Listing,
    files: Vec<HubFile>,
    folder: PathBuf,
}

pub fn run(arguments: PullArgs) -> Result<(), Failure> {
    let client = Client::new(Duration::from_secs(arguments.timeout));
    let hub = Hub::from_environment(&client)?;
    let listing = hub.list(&arguments.repo, &arguments.revision)?;
    let files = chosen(&listing, &arguments.file)?;
    let name = arguments.repo.rsplit('/').next().unwrap_or(&arguments.repo);
    let model = Job { folder: arguments.out.join(name), files, listing };

    // The towers' sizes belong to the bar's total, so the configuration comes first.
    let mut jobs = Vec::new();
    let config = model.files.iter().find(|file| file.name == CONFIG);
    if let (Some(config), false, true) = (config, arguments.no_towers, arguments.file.is_empty()) {
        let path = model.folder.join(CONFIG);
        client.fetch(&hub.file(&model.listing, config), config, &path, &ProgressBar::hidden())?;
        for tower in towers_of(&path)? {
            let folder = arguments.out.join(tower.folder);
            let listing = hub.list(tower.repo, "main")?;
            let files = weights_and_texts(&listing.files, tower.weights);
            jobs.push(Job { listing, files, folder });
        }
    }
    jobs.insert(0, model);
    fetch_all(&client, &hub, &jobs, arguments.connections.into())?;

    let mut out = std::io::stdout().lock();
    for job in &jobs {
        let megabytes = job.files.iter().map(|file| file.size).sum::<u64>() / 1_000_000;
        let unchecked = job.files.iter().filter(|file| file.digest.is_none()).count();
        let note =
            if unchecked == 0 { String::new() } else { format!(", {unchecked} without a checksum to hold them to") };
        let (folder, repo) = (job.folder.display(), &job.listing.repo);
        writeln!(out, "{folder}: {} files of {repo}, {megabytes} MB{note}", job.files.len())?;
    }
    if let Some(file) = arguments.file.first() {
        writeln!(out, "try: mgm chat {}", jobs[0].folder.join(file).display())?;
    } else {
        writeln!(out, "try: mgm chat {}", jobs[0].folder.display())?;
    }
    Ok(())
}

/// Downloads the jobs' files, `connections` at a time. The first failure stops what has not begun.
fn fetch_all(client: &Client, hub: &Hub<'_>, jobs: &[Job], connections: usize) -> Result<()> {
    let mut queue: Vec<(&Job, &HubFile)> =
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
                    if let Err(error) = client.fetch(&hub.file(&job.listing, file), file, &path, &bar) {
                        next.store(queue.len(), Ordering::Relaxed);
                        // A poisoned lock still holds what was written.
                        failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(error);
                    }
                }
            });
        }
    });
    bar.finish_and_clear();
    failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).map_or(Ok(()), Err)
}

/// The files to download: those asked for, a bundle's, or a checkpoint's.
fn chosen(listing: &Listing, wanted: &[String]) -> Result<Vec<HubFile>> {
    if !wanted.is_empty() {
        let find = |name: &String| {
            listing.files.iter().find(|file| file.name == *name).cloned().ok_or_else(|| Error::MissingFile {
                file: format!("{}/{name}", listing.repo),
                hint: format!("the repository has {}", names(&listing.files)),
            })
        };
        return wanted.iter().map(find).collect();
    }
    if listing.files.iter().any(|file| file.name == MANIFEST) {
        return Ok(listing.files.iter().filter(|file| !is_paperwork(&file.name)).cloned().collect());
    }
    if !listing.files.iter().any(|file| file.name == CONFIG) {
        let gguf: Vec<HubFile> = listing.files.iter().filter(|file| file.name.ends_with(".gguf")).cloned().collect();
        let hint = if gguf.is_empty() {
            format!("that is no checkpoint, bundle or GGUF file; the repository has {}", names(&listing.files))
        } else {
            format!("name one of the GGUF files with --file: {}", names(&gguf))
        };
        return Err(Error::MissingFile { file: format!("{}/{CONFIG}", listing.repo), hint });
    }
    let files = weights_and_texts(&listing.files, MODEL_FILES);
    if !files.iter().any(|file| is_weights(&file.name)) {
        return Err(Error::MissingFile {
            file: format!("{}/{}", listing.repo, MODEL_FILES[0]),
            hint: format!("the repository has no weights that are read here, but {}", names(&listing.files)),
        });
    }
    Ok(files)
}

/// Of a checkpoint's folder: configurations, tokenizers, and the weights in the best of the forms that are there.
fn weights_and_texts(files: &[HubFile], forms: &[&str]) -> Vec<HubFile> {
    let form = forms.iter().find(|form| files.iter().any(|file| file.name == **form));
    // An index names shards of its own kind: model-00001-of-00002.safetensors.
    let is_part = |name: &str| {
        form.is_some_and(|form| match form.strip_suffix(".index.json").and_then(|whole| whole.rsplit_once('.')) {
            Some((stem, extension)) => {
                name.starts_with(&format!("{stem}-")) && name.ends_with(&format!(".{extension}"))
            }
            None => name == *form,
        })
    };
    let is_text = |name: &str| {
        [".json", ".model", ".txt", ".jinja"].iter().any(|end| name.ends_with(end))
            && !is_paperwork(name)
            && (!name.ends_with(".index.json") || Some(&name) == form)
    };
    let here = files.iter().filter(|file| !file.name.contains('/'));
    here.filter(|file| is_part(&file.name) || is_text(&file.name)).cloned().collect()
}

fn is_weights(name: &str) -> bool {
    name.ends_with(".safetensors") || name.ends_with(".bin")
}

/// What is about the model and its training, and not of it.
fn is_paperwork(name: &str) -> bool {
    matches!(name, ".gitattributes" | "README.md" | "trainer_state.json" | "all_results.json" | "train_results.json")
}

/// Some names of files, for messages.
fn names(files: &[HubFile]) -> String {
    const MOST: usize = 12;
    let shown: Vec<&str> = files.iter().take(MOST).map(|file| file.name.as_str()).collect();
    let more = files.len().saturating_sub(MOST);
    match (shown.is_empty(), more) {
        (true, _) => "no files".to_owned(),
        (_, 0) => shown.join(", "),
        _ => format!("{} and {more} more", shown.join(", ")),
    }
}

/// A tower that a checkpoint names: its repository, and the folder where the checkpoint looks for it.
struct Tower {
    repo: &'static str,
    folder: PathBuf,
    weights: &'static [&'static str],
}

/// The towers named in a `config.json`. They are named by the folders of whoever trained the model; the repositories that
/// those were copies of are known (Mini-Gemini's instructions name them).
fn towers_of(config: &Path) -> Result<Vec<Tower>> {
    let bytes = std::fs::read(config).map_err(|error| io_error(config, error))?;
    let towers: Towers = serde_json::from_slice(&bytes).map_err(|error| io_error(config, error))?;
    let known = |path: String| {
        let name = path.rsplit('/').next().unwrap_or(&path).to_owned();
        let (repo, weights) = match name.as_str() {
            "clip-vit-large-patch14-336" => ("openai/clip-vit-large-patch14-336", MODEL_FILES),
            "openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup" => {
                ("laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup", OPEN_CLIP_FILES)
            }
            _ => {
                return Err(Error::Unsupported {
                    what: format!("a tower of {}", config.display()),
                    found: path,
                    supported: "clip-vit-large-patch14-336 and openclip-convnext-large-d-320; pull others by \
                                themselves, leave this one's away with --no-towers"
                        .to_owned(),
                });
            }
        };
        Ok(Tower { repo, folder: Path::new("OpenAI").join(name), weights })
    };
    [towers.mm_vision_tower, towers.mm_vision_tower_aux].into_iter().flatten().map(known).collect()
}
