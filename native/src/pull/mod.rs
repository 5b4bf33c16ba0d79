//! `mgm pull`: downloads a model from the Hugging Face Hub, or from the mirror in HF_ENDPOINT, into the cache that all
//! Hugging Face tools share, or into a folder. The other commands find models in the cache by their names.

mod cache;
mod download;
mod environment;
mod find;
mod hub;
mod model_name;
mod proxy;
mod redirect;
mod select;

use std::collections::HashSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use clap::Args;
use indicatif::ProgressBar;
use mgm::weights::bundle::MANIFEST;
use mgm::weights::config::MgmConfig;
use mgm::weights::repository::{self, Tower};
use mgm::{Error, Result};

use crate::files::{io_error, read_regular};
use crate::{CliError, progress, sdxl};
use cache::RepoCache;
pub use cache::repo_of;
use download::{Client, RemoteFile, Target};
use environment::Environment;
pub use find::{LocalModel, locate};
use hub::{Hub, Snapshot};
use model_name::{Choice, ModelName};
use proxy::Proxies;
use select::{Selection, select, weights_and_configs};

#[derive(Debug, Args)]
pub struct PullArgs {
    /// The repository, such as YanweiLi/MGM-2B; OWNER/NAME:Q4_K_M is a GGUF file of it, OWNER/NAME/FILE any file (log
    /// in with `hf auth login` or set HF_TOKEN for private and gated ones)
    #[arg(value_name = "OWNER/NAME")]
    repo: String,
    /// Download only this file, such as a GGUF file; repeat for several [default: all files of the model]
    #[arg(long, value_name = "NAME")]
    file: Vec<String>,
    /// Branch, tag or commit [default: main]
    #[arg(long, value_name = "REVISION")]
    revision: Option<String>,
    /// Folder to download to, one folder per model and tower [default: the cache of Hugging Face's tools]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Don't download the vision towers that the model refers to
    #[arg(long)]
    no_towers: bool,
    /// Number of parallel downloads
    #[arg(long, value_name = "N", default_value_t = CONNECTIONS, value_parser = clap::value_parser!(u16).range(1..=32))]
    connections: u16,
    /// Timeout for connecting, for a response, and for each 16 MiB of a file, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = TIMEOUT, value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
}

const CONNECTIONS: u16 = 4;
const TIMEOUT: u64 = 120;
const CONFIG: &str = "config.json";

/// The repository of the tokenizer that Stable Diffusion XL uses, for models in one file, which have none.
const CLIP_TOKENIZER: &str = "openai/clip-vit-large-patch14";
const TOKENIZER_FILES: [&str; 2] = ["vocab.json", "merges.txt"];

/// What to download, and how.
#[derive(Debug, Clone)]
struct Request {
    name: ModelName,
    /// Files besides those that the name chooses.
    files: Vec<String>,
    /// `None` for the cache.
    out: Option<PathBuf>,
    towers: bool,
    connections: usize,
}

/// Files of one repository and the place to download them to.
struct Job {
    snapshot: Snapshot,
    revision: String,
    files: Vec<RemoteFile>,
    place: Place,
}

enum Place {
    Folder(PathBuf),
    Cache(RepoCache),
}

/// A download with everything known about it.
struct Plan {
    /// The model first, then its towers.
    jobs: Vec<Job>,
    /// The file to open, if the model is not a folder.
    main: Option<String>,
}

pub async fn run(arguments: PullArgs) -> std::result::Result<(), CliError> {
    let environment = Environment::read()?;
    let client = Client::new(Duration::from_secs(arguments.timeout), Proxies::read()?);
    let mut name = ModelName::parse(&arguments.repo)?;
    name.revision = arguments.revision.or(name.revision);
    if name.choice.is_some() && !arguments.file.is_empty() {
        return Err(Error::InvalidArgument(format!("{name} names a file already: omit --file")).into());
    }
    let mut files = arguments.file;
    // The first one is the model.
    if !files.is_empty() {
        name.choice = Some(Choice::File(files.remove(0)));
    }
    let request = Request {
        name,
        files,
        out: arguments.out,
        towers: !arguments.no_towers,
        connections: arguments.connections.into(),
    };
    let mut out = std::io::stdout().lock();
    if environment.offline {
        let found = find::in_cache(&environment, &request.name)?.ok_or_else(|| {
            Error::InvalidArgument(format!("HF_HUB_OFFLINE is set, and {} is not in the cache", request.name))
        })?;
        writeln!(out, "{}: in the cache (offline)", found.path.display())?;
        return Ok(());
    }
    let hub = Hub::new(&client, &environment);
    let plan = Plan::new(&client, &hub, &environment, &request)?;
    let model = plan.fetch(&client, &hub, &environment, &request).await?;
    for job in &plan.jobs {
        let megabytes = job.files.iter().map(|file| file.size).sum::<u64>() / 1_000_000;
        let unchecked = job.files.iter().filter(|file| file.digest.is_none()).count();
        let note = if unchecked == 0 { String::new() } else { format!(", {unchecked} without a checksum") };
        let (folder, repo) = (job.folder(), &job.snapshot.repo);
        writeln!(out, "{}: {} files of {repo}, {megabytes} MB{note}", folder.display(), job.files.len())?;
    }
    // A model in the cache has a name that every command knows.
    let short = if request.out.is_some() { model.display().to_string() } else { request.name.to_string() };
    match &plan.main {
        Some(file) if file.ends_with(".gguf") => writeln!(out, "try: mgm chat {short}")?,
        Some(_) if is_sdxl_file(&model).await => writeln!(out, "try: mgm generate {short} --prompt TEXT")?,
        Some(_) => {}
        None if sdxl::is_sdxl(&model).await? => writeln!(out, "try: mgm generate {short} --prompt TEXT")?,
        None if is_chat_model(&model) => writeln!(out, "try: mgm chat {short}")?,
        None => {}
    }
    Ok(())
}

/// Whether a folder is a bundle or has a language model's configuration. The configuration of a vision tower alone does
/// not count.
fn is_chat_model(folder: &Path) -> bool {
    let config = read_regular(&folder.join(CONFIG)).is_ok_and(|bytes| MgmConfig::parse(CONFIG, &bytes).is_ok());
    config || folder.join(MANIFEST).exists()
}

/// Whether a file is a whole Stable Diffusion XL model, with the tensor names of its authors. LoRA files and parts of a
/// model have other names.
async fn is_sdxl_file(path: &Path) -> bool {
    let open = async || {
        let file = mgm::weights::checkpoint::Checkpoint::open_file(sdxl::open_file(path)?).await?;
        Ok::<_, Error>(file.names().any(|name| name.starts_with("model.diffusion_model.")))
    };
    path.extension().is_some_and(|extension| extension == "safetensors") && open().await.unwrap_or(false)
}

impl Job {
    /// Lists a repository and selects its files.
    fn new(
        hub: &Hub<'_>,
        (repo, revision): (&str, &str),
        place: Place,
        select: impl FnOnce(&Snapshot) -> Result<Vec<RemoteFile>>,
    ) -> Result<Self> {
        let snapshot = hub.list(repo, revision)?;
        let mut files = select(&snapshot)?;
        if matches!(place, Place::Cache(_)) {
            // The cache names content by its version.
            for file in &mut files {
                hub.complete(&snapshot, file)?;
                if file.etag().is_none() {
                    return Err(Error::InvalidArgument(format!(
                        "the server sends no ETag for {}, which the cache needs: pass --out DIR",
                        file.name
                    )));
                }
            }
        }
        Ok(Self { snapshot, revision: revision.to_owned(), files, place })
    }

    /// The folder that has the files when they are downloaded.
    fn folder(&self) -> PathBuf {
        match &self.place {
            Place::Folder(folder) => folder.clone(),
            Place::Cache(cache) => cache.snapshot(&self.snapshot.commit),
        }
    }

    fn target(&self, file: &RemoteFile, environment: &Environment) -> Target {
        match (&self.place, file.etag()) {
            (Place::Cache(cache), Some(etag)) => {
                let path = cache.blob(etag);
                let part = path.with_file_name(format!("{etag}.incomplete"));
                Target { path, part, lock: Some(cache.lock(etag)), copy: None }
            }
            (_, etag) => {
                let mut target = Target::plain(self.folder().join(&file.name), file);
                let cache = environment.cache.as_ref().zip(etag);
                target.copy = cache.map(|(cache, etag)| RepoCache::new(cache, &self.snapshot.repo).blob(etag));
                target
            }
        }
    }

    fn fetch(
        &self,
        client: &Client,
        hub: &Hub<'_>,
        environment: &Environment,
        file: &RemoteFile,
        bar: &ProgressBar,
    ) -> Result<()> {
        client.fetch(&hub.file(&self.snapshot, file), file, &self.target(file, environment), bar)?;
        match (&self.place, file.etag()) {
            (Place::Cache(cache), Some(etag)) => cache.link(&self.snapshot.commit, &file.name, etag),
            _ => Ok(()),
        }
    }

    /// Bytes that are not on the disk yet.
    fn missing_bytes(&self, environment: &Environment) -> u64 {
        let missing = |file: &RemoteFile| {
            let target = self.target(file, environment);
            let there = [&target.path, &target.part].into_iter().find_map(|path| Some(path.metadata().ok()?.len()));
            file.size.saturating_sub(there.unwrap_or(0))
        };
        self.files.iter().map(missing).sum()
    }
}

impl Plan {
    /// Lists the repositories. Downloads the model's configuration, which names the towers.
    fn new(client: &Client, hub: &Hub<'_>, environment: &Environment, request: &Request) -> Result<Self> {
        let mut main = None;
        let place = |repo: &str, folder: &Path| place(environment, request, repo, folder);
        let repo = request.name.repo.as_str();
        let name = repo.rsplit('/').next().unwrap_or(repo);
        let selected = |snapshot: &Snapshot| {
            let Selection { mut files, main: file } = select(repo, &snapshot.files, request.name.choice.as_ref())?;
            for name in &request.files {
                files.extend(select(repo, &snapshot.files, Some(&Choice::File(name.clone())))?.files);
            }
            let mut seen = HashSet::new();
            files.retain(|file| seen.insert(file.name.clone()));
            main = file;
            Ok(files)
        };
        let model = Job::new(hub, (repo, request.name.revision()), place(repo, Path::new(name))?, selected)?;
        let mut jobs = Vec::new();
        let config = model.files.iter().find(|file| file.name == CONFIG);
        if let (Some(config), true, None) = (config, request.towers, &main) {
            model.fetch(client, hub, environment, config, &ProgressBar::hidden())?;
            for tower in towers_of(&model.folder().join(CONFIG))? {
                let selected = |snapshot: &Snapshot| Ok(weights_and_configs(&snapshot.files, tower.formats));
                jobs.push(Job::new(hub, (tower.repo, "main"), place(tower.repo, Path::new(&tower.folder))?, selected)?);
            }
        }
        jobs.insert(0, model);
        Ok(Self { jobs, main })
    }

    /// Bytes to download.
    fn missing_bytes(&self, environment: &Environment) -> u64 {
        self.jobs.iter().map(|job| job.missing_bytes(environment)).sum()
    }

    /// Downloads everything and returns the model: a folder, or a file.
    async fn fetch(
        &self,
        client: &Client,
        hub: &Hub<'_>,
        environment: &Environment,
        request: &Request,
    ) -> Result<PathBuf> {
        self.check_space(environment)?;
        fetch_all(client, hub, environment, &self.jobs, request.connections)?;
        let folder = self.jobs[0].folder();
        let Some(main) = &self.main else { return Ok(folder) };
        let model = folder.join(main);
        if is_sdxl_file(&model).await {
            let around = model.parent().unwrap_or(Path::new(".")).to_owned();
            let has_tokenizer = ["tokenizer", TOKENIZER_FILES[0]].iter().any(|name| around.join(name).exists());
            if !has_tokenizer {
                let place = match &request.out {
                    Some(_) => Place::Folder(around),
                    None => place(environment, request, CLIP_TOKENIZER, Path::new(""))?,
                };
                let selected = |snapshot: &Snapshot| {
                    let wanted = |file: &&RemoteFile| TOKENIZER_FILES.contains(&file.name.as_str());
                    Ok(snapshot.files.iter().filter(wanted).cloned().collect())
                };
                let tokenizer = Job::new(hub, (CLIP_TOKENIZER, "main"), place, selected)?;
                fetch_all(client, hub, environment, &[tokenizer], request.connections)?;
            }
        }
        Ok(model)
    }

    /// Refuses a download that the disk has no room for, before it starts.
    fn check_space(&self, environment: &Environment) -> Result<()> {
        let needed = self.missing_bytes(environment);
        let folder = self.jobs[0].folder();
        let existing = folder.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("."));
        // If the system does not report it, the download itself fails on a full disk.
        let Ok(free) = fs4::available_space(existing) else { return Ok(()) };
        if needed <= free {
            return Ok(());
        }
        let gigabytes = |bytes: u64| bytes as f64 / 1e9;
        let reason = format!("{:.1} GB are missing, {:.1} GB are free", gigabytes(needed), gigabytes(free));
        Err(Error::Io { file: existing.display().to_string(), kind: std::io::ErrorKind::StorageFull, reason })
    }
}

/// The place of a repository. `folder` is its name in `--out`.
fn place(environment: &Environment, request: &Request, repo: &str, folder: &Path) -> Result<Place> {
    if let Some(out) = &request.out {
        return Ok(Place::Folder(out.join(folder)));
    }
    let cache = environment.cache.as_ref().ok_or_else(|| {
        Error::InvalidArgument("there is no cache folder: set HF_HOME or HOME, or pass --out DIR".to_owned())
    })?;
    Ok(Place::Cache(RepoCache::new(cache, repo)))
}

/// Downloads all files, `connections` at a time. After a failure, no new downloads start.
fn fetch_all(
    client: &Client,
    hub: &Hub<'_>,
    environment: &Environment,
    jobs: &[Job],
    connections: usize,
) -> Result<()> {
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
                    if let Err(error) = job.fetch(client, hub, environment, file, &bar) {
                        next.store(queue.len(), Ordering::Relaxed);
                        // A poisoned lock still holds the first error.
                        failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(error);
                    }
                }
            });
        }
    });
    bar.finish_and_clear();
    failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).map_or(Ok(()), Err)?;
    // Last, so that a branch in the cache always refers to a commit whose files are complete.
    for job in jobs {
        if let Place::Cache(cache) = &job.place {
            cache.set_commit(&job.revision, &job.snapshot.commit)?;
        }
    }
    Ok(())
}

/// The towers named in the `config.json` at a path.
fn towers_of(config: &Path) -> Result<Vec<Tower>> {
    let bytes = read_regular(config).map_err(|error| io_error(config, error))?;
    repository::towers(&config.display().to_string(), &bytes).map_err(|error| match error {
        Error::Unsupported { what, found, supported } => {
            let supported = format!("{supported}; use --no-towers and download the tower separately");
            Error::Unsupported { what, found, supported }
        }
        error => error,
    })
}
