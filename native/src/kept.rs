//! What is kept of an adapter from run to run, in the user's cache folder: which kernels are the fastest (`mgm tune`), and
//! pipelines in the driver's own form. All of it can be deleted at any time.

use std::collections::HashSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use mgm::gpu::{AdapterSummary, Gpu, GpuOptions, Kernel};
use mgm::ops::{Tuning, set_tuning};
use sha2::{Digest, Sha256};

/// Bytes of the checksum before the driver's data.
const SUM: usize = 32;

/// Opens a device with what is kept of it.
pub async fn open(options: &GpuOptions) -> mgm::Result<Gpu> {
    let gpu = Gpu::open_with_pipeline_cache(options, read_pipelines).await?;
    let tuning = file(gpu.adapter(), "tuning.json").and_then(|path| std::fs::read(path).ok());
    // What cannot be read any more is measured again.
    if let Some(tuning) = tuning.and_then(|text| serde_json::from_slice::<Tuning>(&text).ok()) {
        set_tuning(&gpu, tuning);
    }
    Ok(gpu)
}

/// The same, with a note where it is a program on the CPU.
pub async fn open_noting(options: &GpuOptions) -> mgm::Result<Gpu> {
    let gpu = open(options).await?;
    if gpu.adapter().is_software() {
        note!("mgm: note: {} is a software adapter: right, but slow", gpu.adapter().name);
    }
    Ok(gpu)
}

/// Makes pipelines, several at a time, before they are needed, and keeps what the driver made of them.
pub fn prepare(gpu: &Gpu, kernels: &HashSet<Kernel>) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(kernels.len());
    let queue = Mutex::new(kernels.iter());
    let next = || queue.lock().ok().and_then(|mut kernels| kernels.next());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(kernel) = next() {
                    gpu.prepare(kernel.clone());
                }
            });
        }
    });
    if let (Some(data), Some(path)) = (gpu.pipeline_cache(), file(gpu.adapter(), "pipelines")) {
        let mut bytes = Sha256::digest(&data).to_vec();
        bytes.extend(data);
        if std::fs::read(&path).ok().as_ref() != Some(&bytes) {
            // Without it the next start is slower, and no more than that.
            let _ = write(&path, &bytes);
        }
    }
}

/// Keeps measurements; gives the file.
pub fn write_tuning(gpu: &Gpu, tuning: &Tuning) -> std::io::Result<PathBuf> {
    let path = file(gpu.adapter(), "tuning.json")
        .ok_or_else(|| std::io::Error::other("there is no cache folder: set XDG_CACHE_HOME or HOME"))?;
    write(&path, &serde_json::to_vec_pretty(tuning)?)?;
    Ok(path)
}

/// Only what this program wrote, whole: drivers trust it.
fn read_pipelines(adapter: &AdapterSummary) -> Option<Vec<u8>> {
    let bytes = std::fs::read(file(adapter, "pipelines")?).ok()?;
    let (sum, data) = bytes.split_at_checked(SUM)?;
    (Sha256::digest(data).as_slice() == sum).then(|| data.to_vec())
}

/// Whole or not at all.
fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let part = path.with_extension(format!("{}.part", std::process::id()));
    let written = std::fs::File::create(&part).and_then(|mut file| file.write_all(bytes));
    written.and_then(|()| std::fs::rename(&part, path)).inspect_err(|_| drop(std::fs::remove_file(&part)))
}

fn file(adapter: &AdapterSummary, kind: &str) -> Option<PathBuf> {
    Some(folder()?.join("mgm").join(format!("{}.{kind}", adapter.cache_name)))
}

fn folder() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let own = if cfg!(windows) {
        variable("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        variable("HOME").map(|home| home.join("Library/Caches"))
    } else {
        variable("HOME").map(|home| home.join(".cache"))
    };
    variable("XDG_CACHE_HOME").or(own)
}
