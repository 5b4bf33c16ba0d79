//! The thread that generates images, on a device of its own: the driver divides the GPU between it and the engine's, so
//! that running answers continue.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Instant;

use mgm::diffusion::{DiffusionEvent, DiffusionOptions, DiffusionPipeline};
use mgm::gpu::GpuOptions;
use mgm::image::encode_png;
use mgm::weights::sdxl::SdxlCheckpoint;
use mgm::{Error, Result};
use tokio::sync::mpsc::UnboundedSender;

use super::error::ApiError;
use super::image_model::{ImageJob, ImageServed, ImageSpec, ImageUpdate, InitialImage};
use super::reply::unix_time;
use super::slots::Slots;
use super::state::Server;
use crate::interrupt::continue_unless;
use crate::recovery::Recovery;
use crate::sdxl::{self, CheckedModel, SdxlArgs};
use crate::{CliError, device_cache};

/// The thread, which waits for the server.
pub struct ImageThread {
    pub model: Arc<ImageServed>,
    thread: JoinHandle<()>,
    server: mpsc::Sender<Arc<Server>>,
}

impl ImageThread {
    /// Lets it work for a server.
    pub fn begin(self, server: &Arc<Server>) -> JoinHandle<()> {
        // Without the thread there is nothing to begin.
        let _ = self.server.send(server.clone());
        self.thread
    }
}

/// Opens the files of the image model, and starts the thread. The device is opened with the first request.
///
/// # Errors
/// Those of the files; [`CliError::Output`] if the system refuses a thread.
pub fn start(source: SdxlArgs, options: GpuOptions, queue: u32) -> std::result::Result<ImageThread, CliError> {
    let (opened, model) = mpsc::channel();
    let (ready, server) = mpsc::channel::<Arc<Server>>();
    let thread = move || {
        let checked = pollster::block_on(async { sdxl::check(source.open().await?, None).await });
        let (jobs, received) = mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let checked = match describe(checked, &source, queue, jobs, &stop) {
            Ok((checked, served)) => {
                if opened.send(Ok(served)).is_err() {
                    return;
                }
                checked
            }
            // The receiver waits for it.
            Err(error) => return drop(opened.send(Err(error))),
        };
        let Ok(server) = server.recv() else { return };
        let worker = Worker {
            source,
            recovery: Recovery::new(options.clone()),
            options,
            server,
            checked: Some(checked),
            pipeline: None,
            stop,
        };
        pollster::block_on(worker.run(&received));
    };
    let thread = std::thread::Builder::new().name("images".to_owned()).spawn(thread)?;
    let model = model.recv().map_err(|_| Error::Internal("the thread of the image model ended".to_owned()))?;
    Ok(ImageThread { model: Arc::new(model.map_err(CliError::Image)?), thread, server: ready })
}

fn describe(
    checked: Result<CheckedModel>,
    source: &SdxlArgs,
    queue: u32,
    jobs: mpsc::Sender<Option<Box<ImageJob>>>,
    stop: &Arc<AtomicBool>,
) -> Result<(CheckedModel, ImageServed)> {
    let checked = checked?;
    let served = ImageServed {
        id: source.name()?,
        created: unix_time(),
        default_size: checked.0.default_size(),
        precision: precision(source, &checked.0).to_string(),
        slots: Slots::new(1, queue),
        jobs,
        stop: stop.clone(),
        last: AtomicU64::new(0),
    };
    Ok((checked, served))
}

fn precision(source: &SdxlArgs, checkpoint: &SdxlCheckpoint) -> mgm::tensor::Precision {
    source.precision.unwrap_or_else(|| checkpoint.stored_precision())
}

/// Generates one image after the other.
struct Worker {
    source: SdxlArgs,
    options: GpuOptions,
    server: Arc<Server>,
    recovery: Recovery,
    /// The opened files, until they are loaded.
    checked: Option<CheckedModel>,
    pipeline: Option<DiffusionPipeline>,
    stop: Arc<AtomicBool>,
}

impl Worker {
    async fn run(mut self, jobs: &mpsc::Receiver<Option<Box<ImageJob>>>) {
        while let Ok(Some(job)) = jobs.recv() {
            let ImageJob { spec, updates } = *job;
            let started = Instant::now();
            let done = self.generate(&spec, &updates).await;
            if let Some(model) = self.server.image_model() {
                model.last.store(started.elapsed().as_millis() as u64, Ordering::Relaxed);
            }
            match done {
                Ok(()) | Err(Error::Cancelled) => {}
                Err(error) => {
                    if !matches!(error, Error::InvalidArgument(_)) {
                        note!("mgm: error: {error}");
                        // What is left may be of a lost device, or of one with too little memory.
                        self.pipeline = None;
                    }
                    let _ = updates.send(ImageUpdate::Failed(ApiError::of_engine(&error)));
                }
            }
        }
    }

    async fn generate(&mut self, spec: &ImageSpec, updates: &UnboundedSender<ImageUpdate>) -> Result<()> {
        for index in 0..spec.count {
            loop {
                match self.generate_one(spec, index, updates).await {
                    Ok(update) => {
                        self.recovery.note_result();
                        self.server.metrics.image();
                        // Without a receiver the next one is cancelled.
                        let _ = updates.send(update);
                        break;
                    }
                    Err(error @ Error::DeviceLost(_)) => {
                        self.pipeline = None;
                        let gpu = self.recovery.reopen(error).await?;
                        self.pipeline = Some(self.open(gpu).await?);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    async fn generate_one(
        &mut self,
        spec: &ImageSpec,
        index: u64,
        updates: &UnboundedSender<ImageUpdate>,
    ) -> Result<ImageUpdate> {
        continue_or_cancel(&self.stop, updates)?;
        if self.pipeline.is_none() {
            let gpu = device_cache::open(&self.gpu_options()).await?;
            self.pipeline = Some(self.open(gpu).await?);
        }
        let name = self.source.name()?;
        let stop = self.stop.clone();
        let Some(pipeline) = &mut self.pipeline else { return Err(Error::Internal("no image model".to_owned())) };
        let mut generate = pipeline
            .generate(&spec.prompt)
            .num_inference_steps(spec.steps)
            .guidance_scale(spec.guidance_scale)
            .scheduler(spec.scheduler)
            .seed(spec.seed.wrapping_add(index))
            .model_name(name)
            .previews(spec.previews > 0);
        if let Some(negative_prompt) = &spec.negative_prompt {
            generate = generate.negative_prompt(negative_prompt);
        }
        if let Some((width, height)) = spec.size {
            generate = generate.size(width, height);
        }
        if let Some(InitialImage { image, mask, strength }) = &spec.initial {
            generate = generate.image(image.clone()).strength(*strength);
            if let Some(mask) = mask {
                generate = generate.mask(mask.clone());
            }
        }
        let (step, mut sent, mut failed) = (Cell::new((0, 0)), 0, Ok(()));
        let generated = generate
            .on_event(|event| {
                match event {
                    DiffusionEvent::Step { done, total } => step.set((done, total)),
                    DiffusionEvent::Preview { image } if is_preview(step.get(), sent, spec.previews) => {
                        match encode_png(image, &[]) {
                            Ok(png) => drop(updates.send(ImageUpdate::Preview { index: sent, png })),
                            Err(error) => failed = Err(error),
                        }
                        sent += 1;
                    }
                    _ => {}
                }
                if failed.is_err() || updates.is_closed() { ControlFlow::Break(()) } else { continue_unless(&stop) }
            })
            .await;
        failed?;
        let generated = generated?;
        Ok(ImageUpdate::Image { png: generated.to_png()?, settings: Box::new(generated.settings) })
    }

    /// A pipeline on a device, to which nothing is loaded yet.
    async fn open(&mut self, gpu: mgm::gpu::Gpu) -> Result<DiffusionPipeline> {
        let (checkpoint, tokenizers) = match self.checked.take() {
            Some(checked) => checked,
            None => sdxl::check(self.source.open().await?, None).await?,
        };
        let stop = self.stop.clone();
        let options = DiffusionOptions::default()
            .with_precision(precision(&self.source, &checkpoint))
            .with_tokenizers(tokenizers)
            .with_progress(Rc::new(move |_| continue_unless(&stop)));
        DiffusionPipeline::open(&gpu, checkpoint, options).await
    }

    /// What the language model leaves of the memory limit.
    fn gpu_options(&self) -> GpuOptions {
        let used = self.server.loaded().map_or(0, |served| served.gpu_bytes);
        let left = self.options.memory_limit.map(|limit| limit.saturating_sub(used).max(1));
        self.options.clone().with_memory_limit(left)
    }
}

fn continue_or_cancel(stop: &AtomicBool, updates: &UnboundedSender<ImageUpdate>) -> Result<()> {
    if updates.is_closed() || continue_unless(stop).is_break() { Err(Error::Cancelled) } else { Ok(()) }
}

/// Whether a preview is sent after `done` of `total` steps: `wanted` of them at about equal distances, and none of the
/// end.
fn is_preview((done, total): (usize, usize), sent: usize, wanted: usize) -> bool {
    sent < wanted && done < total && done * (wanted + 1) >= total * (sent + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn previews_are_at_equal_distances() {
        let steps = |total: usize, wanted: usize| {
            let mut found = Vec::new();
            for done in 1..=total {
                if is_preview((done, total), found.len(), wanted) {
                    found.push(done);
                }
            }
            found
        };
        assert!(steps(50, 0).is_empty());
        assert_eq!(steps(50, 1), [25]);
        assert_eq!(steps(50, 3), [13, 25, 38]);
        assert_eq!(steps(6, 2), [2, 4]);
        assert_eq!(steps(3, 3), [1, 2]);
        assert!(steps(1, 3).is_empty());
    }
}
