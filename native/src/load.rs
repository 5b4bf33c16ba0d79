//! Models onto the device, with progress on standard error.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mgm::gpu::Gpu;
use mgm::load::LoadOptions;
use mgm::plan::Plan;
use mgm::session::Model;
use mgm::weights::model_files::ModelFiles;

use crate::{kept, progress};

/// Loads a model and makes its pipelines, until it is done or `stop` is set.
pub async fn model(
    gpu: &Gpu,
    files: &ModelFiles,
    options: &LoadOptions,
    stop: &Arc<AtomicBool>,
) -> mgm::Result<Rc<Model>> {
    let bar = progress::bytes(Plan::of_files(files, options)?.weights(), "loading");
    let (counter, stop) = (bar.clone(), stop.clone());
    let on_progress = Rc::new(move |bytes| {
        counter.inc(bytes);
        !stop.load(Ordering::Relaxed)
    });
    let options = LoadOptions { on_progress: Some(on_progress), ..options.clone() };
    let model = Model::open(gpu, files, &options).await;
    bar.finish_and_clear();
    let model = model?;
    kept::prepare(gpu, &model.dry_run()?.kernels);
    Ok(Rc::new(model))
}
