//! The image model as requests see it, and what they ask of it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};

use mgm::diffusion::png_metadata::ImageSettings;
use mgm::image::Image;
use mgm::weights::sdxl::config::SchedulerOverride;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::error::ApiError;
use super::slots::Slots;

/// The image model, as requests see it.
#[derive(Debug)]
pub struct ImageServed {
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// Width and height of its images in pixels.
    pub default_size: (usize, usize),
    pub precision: String,
    pub slots: Slots,
    pub jobs: mpsc::Sender<Option<Box<ImageJob>>>,
    pub stop: Arc<AtomicBool>,
    /// Milliseconds that the last request took.
    pub last: AtomicU64,
}

/// What to generate.
#[derive(Debug)]
pub struct ImageSpec {
    pub prompt: String,
    pub negative_prompt: Option<String>,
    pub steps: usize,
    pub guidance_scale: f32,
    pub scheduler: Option<SchedulerOverride>,
    /// Of the first image. The others have the ones that follow.
    pub seed: u64,
    /// Images.
    pub count: u64,
    /// Width and height in pixels. `None`: about those of the initial image, or the model's.
    pub size: Option<(usize, usize)>,
    pub initial: Option<InitialImage>,
    /// Previews of each image.
    pub previews: usize,
}

/// The image to change.
#[derive(Debug)]
pub struct InitialImage {
    pub image: Image,
    /// White where it is regenerated.
    pub mask: Option<Image>,
    pub strength: Option<f32>,
}

/// A request, on its way to the thread.
#[derive(Debug)]
pub struct ImageJob {
    pub spec: ImageSpec,
    /// The request is cancelled when the receiver is gone.
    pub updates: UnboundedSender<ImageUpdate>,
}

/// What happens to a request.
#[derive(Debug)]
pub enum ImageUpdate {
    /// A rough image, a PNG file, and its number among the previews of this image.
    Preview {
        index: usize,
        png: Vec<u8>,
    },
    /// A finished image: a PNG file that has the settings too.
    Image {
        png: Vec<u8>,
        settings: Box<ImageSettings>,
    },
    Failed(ApiError),
}

impl ImageServed {
    /// Queues a request. Dropping the receiver cancels it.
    pub fn submit(&self, spec: ImageSpec) -> UnboundedReceiver<ImageUpdate> {
        let (updates, received) = unbounded_channel();
        // Without the thread the sender is dropped, which ends the updates.
        let _ = self.jobs.send(Some(Box::new(ImageJob { spec, updates })));
        received
    }

    /// Ends the thread after at most a step.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        // Without the thread there is nothing to end.
        let _ = self.jobs.send(None);
    }

    /// Seconds until a request is finished, 1 to 60.
    pub fn retry_seconds(&self) -> u64 {
        self.last.load(Ordering::Relaxed).div_ceil(1000).clamp(1, 60)
    }
}
