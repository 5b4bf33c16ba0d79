//! Data about each adapter in the user's cache folder: the fastest kernels (`mgm tune`) and compiled pipelines in the
//! driver's format. All of it can be deleted at any time.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use mgm::gpu::{AdapterSummary, Gpu, GpuOptions, Kernel};
use mgm::ops::{Tuning, set_tuning};
use sha2::{Digest, Sha256};

use crate::files::{read_regular, replace};
use crate::recovery;

/// Length of the SHA-256 checksum before the driver's data, in bytes.
const CHECKSUM: usize = 32;

/// Opens a device with its cached pipelines and tuning.
pub async fn open(options: &GpuOptions) -> mgm::Result<Gpu> {
    let mut options = options.clone();
    options.test.lost_after = recovery::lost_after();
    let gpu = Gpu::open_with_pipeline_cache(&options, read_pipelines).await?;
    let tuning = file(gpu.adapter(), "tuning.json").and_then(|path| read_regular(&path).ok());
    // A file in another format is ignored; `mgm tune` replaces it.
    if let Some(tuning) = tuning.and_then(|text| serde_json::from_slice::<Tuning>(&text).ok()) {
        set_tuning(&gpu, tuning);
    }
    Ok(gpu)
}

/// Opens a device as [`open`] does and prints a note if it is a software adapter.
pub async fn open_with_note(options: &GpuOptions) -> mgm::Result<Gpu> {
    let gpu = open(options).await?;
    for error in gpu.skipped_adapters() {
        note!("mgm: note: {error}; using {} instead", gpu.adapter().name);
    }
    if gpu.adapter().is_software() {
        note!("mgm: note: {} is a software adapter: correct but slow", gpu.adapter().name);
    }
    if gpu.emulates_f16() {
        note!(
            "mgm: note: {} cannot convert f16 to f32: mgm does it with integers, which is slower",
            gpu.adapter().name
        );
    }
    Ok(gpu)
}

/// Compiles pipelines on threads of its own. Dropping it stops them after the pipelines that they are compiling.
pub struct Preparation {
    gpu: Gpu,
    waiting: Arc<Mutex<Vec<Kernel>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Preparation {
    /// Starts to compile the pipelines of `kernels`.
    pub fn start(gpu: &Gpu, kernels: impl IntoIterator<Item = Kernel>) -> Self {
        let kernels: Vec<_> = kernels.into_iter().collect();
        let count = std::thread::available_parallelism().map_or(1, usize::from).min(kernels.len());
        let waiting = Arc::new(Mutex::new(kernels));
        let thread = |_| {
            let (gpu, waiting) = (gpu.clone(), waiting.clone());
            // Without the thread the others compile, or the first use does.
            let compile = move || {
                let next = || waiting.lock().ok().and_then(|mut kernels| kernels.pop());
                while let Some(kernel) = next() {
                    gpu.prepare(kernel);
                }
            };
            std::thread::Builder::new().spawn(compile).ok()
        };
        Self { gpu: gpu.clone(), threads: (0..count).filter_map(thread).collect(), waiting }
    }

    /// Waits for all pipelines and caches what the driver compiled.
    pub fn finish(mut self) {
        self.join();
        if let (Some(data), Some(path)) = (self.gpu.pipeline_cache(), file(self.gpu.adapter(), "pipelines")) {
            let mut bytes = Sha256::digest(&data).to_vec();
            bytes.extend(data);
            if read_regular(&path).ok().as_ref() != Some(&bytes) {
                // Without the cache the next start is slower, so a failure is not an error.
                let _ = replace(&path, &bytes);
            }
        }
    }

    fn join(&mut self) {
        for thread in self.threads.drain(..) {
            // A panic was printed, and the pipeline is created when it is used.
            let _ = thread.join();
        }
    }
}

impl Drop for Preparation {
    fn drop(&mut self) {
        if let Ok(mut waiting) = self.waiting.lock() {
            waiting.clear();
        }
        self.join();
    }
}

/// Caches tuning results and returns the file.
///
/// # Errors
/// [`mgm::Error::Io`] with the file; [`mgm::Error::InvalidArgument`] if there is no cache folder.
pub fn write_tuning(gpu: &Gpu, tuning: &Tuning) -> mgm::Result<PathBuf> {
    let path = tuning_file(gpu)?;
    let written = serde_json::to_vec_pretty(tuning).map_err(Into::into).and_then(|text| replace(&path, &text));
    written.map_err(|error| cannot_write(&path, &error))?;
    Ok(path)
}

/// Checks that [`write_tuning`] can write its file.
///
/// # Errors
/// As [`write_tuning`].
pub fn check_tuning_file(gpu: &Gpu) -> mgm::Result<()> {
    let path = tuning_file(gpu)?;
    let probe = path.with_extension("probe");
    replace(&probe, b"{}").and_then(|()| std::fs::remove_file(&probe)).map_err(|error| cannot_write(&path, &error))
}

fn tuning_file(gpu: &Gpu) -> mgm::Result<PathBuf> {
    file(gpu.adapter(), "tuning.json")
        .ok_or_else(|| mgm::Error::InvalidArgument("there is no cache folder: set XDG_CACHE_HOME or HOME".to_owned()))
}

fn cannot_write(path: &Path, error: &std::io::Error) -> mgm::Error {
    mgm::Error::Io {
        file: path.display().to_string(),
        kind: error.kind(),
        reason: format!(
            "{error}; tuning results are cached there: set XDG_CACHE_HOME to a folder that can be written to"
        ),
    }
}

/// Reads cached pipelines. The checksum matters: drivers don't validate this data.
fn read_pipelines(adapter: &AdapterSummary) -> Option<Vec<u8>> {
    let bytes = read_regular(&file(adapter, "pipelines")?).ok()?;
    let (checksum, data) = bytes.split_at_checked(CHECKSUM)?;
    (Sha256::digest(data).as_slice() == checksum).then(|| data.to_vec())
}

fn file(adapter: &AdapterSummary, kind: &str) -> Option<PathBuf> {
    Some(folder()?.join("mgm").join(format!("{}.{kind}", adapter.cache_name)))
}

/// The user's cache folder. No crate for this: `dirs` ignores XDG_CACHE_HOME on Windows and macOS.
fn folder() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let default = if cfg!(windows) {
        variable("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        variable("HOME").map(|home| home.join("Library/Caches"))
    } else {
        variable("HOME").map(|home| home.join(".cache"))
    };
    variable("XDG_CACHE_HOME").or(default)
}
