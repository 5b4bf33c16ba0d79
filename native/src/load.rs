//! Opens checkpoints and loads models onto the device.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use mgm::gpu::Gpu;
use mgm::io::{DiskFile, DiskFolder, Folder};
use mgm::memory_plan::MemoryPlan;
use mgm::ops;
use mgm::session::{LoadOptions, Model, ModelText};
use mgm::tensor::Precision;
use mgm::tuning::tune_within;
use mgm::weights::bundle::MANIFEST;
use mgm::weights::gguf_model::GgufModel;
use mgm::weights::mgm::TowerOptions;
use mgm::weights::model_files::ModelFiles;
use mgm::weights::report::PartReport;

use crate::args::CheckpointArgs;
use crate::device_cache::{Preparation, write_tuning};
use crate::interrupt::continue_unless;
use crate::pull::LocalModel;
use crate::{bundled_models, progress, pull};

/// How long the measurements delay a model's first load on a GPU.
const MEASURING_TIME: Duration = Duration::from_secs(2);

/// The checkpoint that the arguments name, or the bundled model.
///
/// # Errors
/// [`mgm::Error::InvalidArgument`] if none is named and none is bundled; those of [`pull::locate`].
pub fn checkpoint_path(arguments: &CheckpointArgs) -> mgm::Result<PathBuf> {
    local_checkpoint(arguments).map(|model| model.path)
}

fn local_checkpoint(arguments: &CheckpointArgs) -> mgm::Result<LocalModel> {
    if let Some(path) = &arguments.checkpoint {
        let mut local = pull::locate(path)?;
        if local.path.is_dir() {
            // The snapshot of a repository in the Hugging Face cache.
            local.path = DiskFolder::new(local.path).path().to_owned();
        } else if let Some(folder) = folder_of(&local.path) {
            local.path = folder.to_owned();
        }
        return Ok(local);
    }
    let path = bundled_models::find(bundled_models::POCKET);
    let path = path.ok_or_else(|| bundled_models::missing(bundled_models::POCKET))?;
    Ok(LocalModel { path, ..LocalModel::default() })
}

/// The checkpoint's folder that a file in it stands for, such as its configuration or a shard.
fn folder_of(file: &Path) -> Option<&Path> {
    let part = ["json", "safetensors", "bin"].iter().any(|end| file.extension().is_some_and(|found| found == *end));
    let folder = file.parent().filter(|_| part && file.is_file())?;
    // The folder of a relative name is empty.
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    ["config.json", MANIFEST].iter().any(|name| folder.join(name).exists()).then_some(folder)
}

/// Opens the checkpoint of [`checkpoint_path`] with its towers. A GGUF file in `--llm` replaces its language model.
///
/// # Errors
/// Those of [`checkpoint_path`] and of the readers.
pub async fn open_checkpoint(arguments: &CheckpointArgs) -> mgm::Result<ModelFiles> {
    let LocalModel { path, clip, convnext, .. } = local_checkpoint(arguments)?;
    let folder = |path: &PathBuf| Rc::new(DiskFolder::new(path)) as Rc<dyn Folder>;
    let mut files = if path.is_file() {
        ModelFiles::Gguf(Box::new(open_gguf(&path).await?))
    } else {
        let towers = TowerOptions::default()
            .with_clip(arguments.vision_tower.as_ref().or(clip.as_ref()).map(folder))
            .with_convnext(arguments.vision_tower_hr.as_ref().or(convnext.as_ref()).map(folder));
        ModelFiles::open(folder(&path), towers).await?
    };
    if let Some(llm) = &arguments.llm {
        let ModelFiles::Mgm(checkpoint) = &mut files else {
            return Err(mgm::Error::InvalidArgument("--llm needs a Mini-Gemini checkpoint".to_owned()));
        };
        checkpoint.replace_language(&open_gguf(&pull::locate(llm)?.path).await?)?;
    }
    Ok(files)
}

/// Opens a GGUF file.
///
/// # Errors
/// Those of the reader.
pub async fn open_gguf(path: &Path) -> mgm::Result<GgufModel> {
    let file = DiskFile::open(path)?;
    GgufModel::open(Rc::new(file)).await
}

/// Checks everything that needs no device, before one is opened: the tensors' names and shapes, and the tokenizer,
/// which is returned.
///
/// # Errors
/// Those of [`PartReport::check`] and of the tokenizer.
pub async fn check(files: &ModelFiles, options: &LoadOptions) -> mgm::Result<ModelText> {
    let text = ModelText::read(files, options).await?;
    match files {
        ModelFiles::Mgm(checkpoint) => {
            // Without the high-resolution view, its networks are not loaded.
            let skipped =
                if options.high_resolution { &[][..] } else { &["high-resolution tower", "patch info mining"] };
            checkpoint.report().iter().filter(|part| !skipped.contains(&part.name)).try_for_each(PartReport::check)?;
        }
        ModelFiles::Gguf(model) => PartReport::for_language(&model.weights, &model.config).check()?,
    }
    Ok(text)
}

/// Options that load a model at `precision`. `None` keeps the precision of a bundle or GGUF file, and otherwise means
/// the default.
pub fn load_options(arguments: &CheckpointArgs, files: &ModelFiles, precision: Option<Precision>) -> LoadOptions {
    let (default, stored) = files.default_precision();
    let keep = precision.is_none() && (stored || arguments.llm.is_some());
    LoadOptions::new(precision.unwrap_or(default)).with_keep_quantization(keep)
}

/// Loads a model with a progress bar and compiles its pipelines meanwhile. Before its first load on a GPU, measures the
/// kernels for its matmuls, with `tune`. Calls the progress callback of `options` too. Set `stop` to cancel.
///
/// # Errors
/// [`mgm::Error::Cancelled`] after a stop, [`mgm::Error::OutOfMemory`], and those of the readers.
pub async fn load_model(
    gpu: &Gpu,
    files: &ModelFiles,
    options: &LoadOptions,
    text: &ModelText,
    tune: bool,
    stop: &Arc<AtomicBool>,
) -> mgm::Result<Model> {
    if tune {
        // Before the weights take memory, and before pipelines are compiled for kernels that may change.
        measure_kernels(gpu, files, options, stop).await?;
    }
    let bar = progress::bytes(MemoryPlan::for_files(files, options)?.weights(), "loading");
    let (counter, stop, callback) = (bar.clone(), stop.clone(), options.on_progress.clone());
    let on_progress = Rc::new(move |bytes| {
        counter.inc(bytes);
        match callback.as_ref().map(|callback| callback(bytes)) {
            Some(ControlFlow::Break(())) => ControlFlow::Break(()),
            _ => continue_unless(&stop),
        }
    });
    let options = options.clone().with_progress(on_progress);
    let preparation = Preparation::start(gpu, Model::kernels(gpu, files, &options).await?);
    let model = Model::open_with_text(gpu, files, &options, text.clone()).await;
    bar.finish_and_clear();
    let model = model?;
    preparation.finish();
    Ok(model)
}

/// Measures the kernels for a model's matmuls and caches the result, unless it is cached or the device is a software
/// adapter.
async fn measure_kernels(gpu: &Gpu, files: &ModelFiles, options: &LoadOptions, stop: &AtomicBool) -> mgm::Result<()> {
    if gpu.adapter().is_software() {
        return Ok(());
    }
    let products = Model::products(gpu, files, options).await?;
    if ops::tuning(gpu).covers(products.keys().copied()) {
        return Ok(());
    }
    note!("mgm: measuring kernels on this GPU, once");
    let store = |tuning: &ops::Tuning| {
        // Without the cache the next load measures again, so a failure is not an error.
        let _ = write_tuning(gpu, tuning);
    };
    match tune_within(gpu, &products, MEASURING_TIME, |_| continue_unless(stop), store).await {
        Err(error @ (mgm::Error::Cancelled | mgm::Error::DeviceLost(_))) => Err(error),
        // After any other error the default kernels stay in use.
        _ => Ok(()),
    }
}
