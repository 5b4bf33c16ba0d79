//! What all requests share: the model once it is loaded, the way to the engine, and whether requests are taken.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use mgm::engine::digest::Salt;
use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::access::{Access, User};
use super::body::Bodies;
use super::command::{Command, Submission};
use super::embedder::EmbeddingJob;
use super::error::ApiError;
use super::image_loader::ImageLoader;
use super::image_model::ImageServed;
use super::mailbox::Mailbox;
use super::metrics::Metrics;
use super::options::Settings;
use super::served::Served;
use super::slots::Slots;

/// A turn of the engine takes less, unless the device hangs.
const STUCK_AFTER: Duration = Duration::from_secs(60);

/// Whether new requests are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Draining {
    No = 0,
    /// `/health` reports it; requests are still taken.
    Announced = 1,
    Refusing = 2,
}

/// How the engine does, as its thread reports it.
#[derive(Debug, Default)]
pub struct Pulse {
    /// Milliseconds from the server's start to the end of the last turn.
    last_turn: AtomicU64,
    busy: AtomicBool,
    /// Tokens that jobs which wait will take.
    waiting_tokens: AtomicU64,
    /// Tokens in 1000 s.
    rate: AtomicU64,
}

/// The server's state.
#[derive(Debug)]
pub struct Server {
    pub settings: Settings,
    pub access: Access,
    pub bodies: Bodies,
    pub images: ImageLoader,
    pub metrics: Metrics,
    started: Instant,
    commands: Sender<Command>,
    tickets: AtomicU64,
    model: OnceLock<Arc<Served>>,
    image_model: Option<Arc<ImageServed>>,
    /// Of loading, in thousandths.
    progress: AtomicU32,
    failed: OnceLock<String>,
    draining: AtomicU8,
    /// The device was lost, and another one is being opened.
    recovering: AtomicBool,
    pulse: Pulse,
}

impl Server {
    pub fn new(
        settings: Settings,
        access: Access,
        commands: Sender<Command>,
        image_model: Option<Arc<ImageServed>>,
    ) -> Self {
        Self {
            bodies: Bodies::new(settings.max_body),
            images: ImageLoader::new(settings.max_pixels),
            settings,
            access,
            metrics: Metrics::default(),
            started: Instant::now(),
            commands,
            tickets: AtomicU64::new(0),
            model: OnceLock::new(),
            image_model,
            progress: AtomicU32::new(0),
            failed: OnceLock::new(),
            draining: AtomicU8::new(Draining::No as u8),
            recovering: AtomicBool::new(false),
            pulse: Pulse::default(),
        }
    }

    /// The model, if it is loaded and requests are taken.
    ///
    /// # Errors
    /// `draining`, `device_lost`, `recovering`, `model_loading`.
    pub fn served(&self) -> Result<&Arc<Served>, ApiError> {
        if self.draining() == Draining::Refusing {
            return Err(ApiError::draining());
        }
        if let Some(message) = self.failure() {
            return Err(ApiError::device_lost(message));
        }
        if self.recovering.load(Ordering::Relaxed) {
            return Err(ApiError::recovering());
        }
        self.model.get().ok_or_else(|| ApiError::model_loading(self.loading_seconds()))
    }

    /// The model, if it is loaded.
    pub fn loaded(&self) -> Option<&Arc<Served>> {
        self.model.get()
    }

    pub fn set_served(&self, served: Arc<Served>) {
        // Only the engine's thread calls this, once.
        let _ = self.model.set(served);
    }

    /// The image model, if there is one.
    pub fn image_model(&self) -> Option<&Arc<ImageServed>> {
        self.image_model.as_ref()
    }

    /// The part of the model that is loaded.
    pub fn progress(&self) -> f64 {
        f64::from(self.progress.load(Ordering::Relaxed)) / 1000.0
    }

    pub fn set_progress(&self, part: f64) {
        self.progress.store((part.clamp(0.0, 1.0) * 1000.0) as u32, Ordering::Relaxed);
    }

    /// Seconds until the model is probably loaded, 1 to 60.
    pub fn loading_seconds(&self) -> u64 {
        let (done, elapsed) = (self.progress().max(0.01), self.started.elapsed().as_secs_f64());
        (elapsed * (1.0 - done) / done).ceil().clamp(1.0, 60.0) as u64
    }

    /// Why the engine cannot continue.
    pub fn failure(&self) -> Option<&str> {
        self.failed.get().map(String::as_str)
    }

    pub fn fail(&self, message: String) {
        let _ = self.failed.set(message);
    }

    /// Notes whether a lost device is being replaced.
    pub fn set_recovering(&self, recovering: bool) {
        self.recovering.store(recovering, Ordering::Relaxed);
    }

    /// `draining`, `error`, `recovering`, `loading` or `ok`.
    pub fn state(&self) -> &'static str {
        if self.draining() != Draining::No {
            "draining"
        } else if self.failure().is_some() {
            "error"
        } else if self.recovering.load(Ordering::Relaxed) {
            "recovering"
        } else if self.loaded().is_none() {
            "loading"
        } else {
            "ok"
        }
    }

    pub fn draining(&self) -> Draining {
        match self.draining.load(Ordering::Relaxed) {
            0 => Draining::No,
            1 => Draining::Announced,
            _ => Draining::Refusing,
        }
    }

    pub fn set_draining(&self, draining: Draining) {
        self.draining.store(draining as u8, Ordering::Relaxed);
    }

    /// Waits until no request is under way.
    pub async fn idle(&self) {
        let (text, image) =
            (self.model.get().map(|model| &model.slots), self.image_model.as_ref().map(|model| &model.slots));
        for slots in [text, image].into_iter().flatten() {
            // It is never closed.
            let _ = slots.free.acquire_many(slots.count).await;
        }
    }

    /// Notes the end of a turn.
    pub fn beat(&self, busy: bool, waiting_tokens: u64, rate: f64) {
        let Pulse { last_turn, busy: is_busy, waiting_tokens: waiting, rate: tokens } = &self.pulse;
        last_turn.store(self.started.elapsed().as_millis() as u64, Ordering::Relaxed);
        is_busy.store(busy, Ordering::Relaxed);
        waiting.store(waiting_tokens, Ordering::Relaxed);
        tokens.store((rate * 1000.0) as u64, Ordering::Relaxed);
    }

    /// Whether the engine finishes its turns.
    pub fn is_alive(&self) -> bool {
        let last = Duration::from_millis(self.pulse.last_turn.load(Ordering::Relaxed));
        // Loading a model again takes as long as it takes.
        let may_rest = !self.pulse.busy.load(Ordering::Relaxed) || self.recovering.load(Ordering::Relaxed);
        may_rest || self.started.elapsed().saturating_sub(last) < STUCK_AFTER
    }

    /// Seconds until the queue is shorter, 1 to 60.
    fn retry_seconds(&self) -> u64 {
        let rate = self.pulse.rate.load(Ordering::Relaxed).max(1);
        (self.pulse.waiting_tokens.load(Ordering::Relaxed) * 1000).div_ceil(rate).clamp(1, 60)
    }

    /// Takes the slots of `count` sequences.
    ///
    /// # Errors
    /// `queue_full`.
    pub fn admit(&self, served: &Served, count: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        self.take_slots(&served.slots, count, self.retry_seconds())
    }

    /// Takes the slot of a request for images.
    ///
    /// # Errors
    /// `queue_full`.
    pub fn admit_image(&self, model: &ImageServed) -> Result<OwnedSemaphorePermit, ApiError> {
        self.take_slots(&model.slots, 1, model.retry_seconds())
    }

    fn take_slots(&self, slots: &Slots, count: usize, retry: u64) -> Result<OwnedSemaphorePermit, ApiError> {
        let permit = slots.free.clone().try_acquire_many_owned(count as u32);
        permit.map_err(|_| match self.draining() {
            // The slots are being taken for good.
            Draining::Refusing => ApiError::draining(),
            _ => ApiError::queue_full(self.settings.queue as usize, retry),
        })
    }

    /// Whose cached prefixes a request may use.
    pub fn salt(&self, user: &User, cache_salt: Option<&str>) -> Salt {
        let mut salt = Vec::new();
        // Without keys nobody can tell users apart: addresses are shared, and change.
        if !self.settings.share_cache && user.name.is_some() {
            salt.extend(user.number.to_le_bytes());
        }
        if let Some(text) = cache_salt {
            salt.extend(Sha256::digest(text));
        }
        Salt(salt)
    }

    /// Sends a request to the engine. Dropping the ticket cancels it.
    pub fn submit(self: &Arc<Self>, submission: Submission, permit: OwnedSemaphorePermit) -> Ticket {
        let id = self.tickets.fetch_add(1, Ordering::Relaxed);
        let mailbox = Arc::new(Mailbox::default());
        if self.commands.send(Command::Submit(id, Box::new(submission), mailbox.clone())).is_err() {
            mailbox.fail(ApiError::draining());
        }
        Ticket { id, mailbox, server: self.clone(), is_finished: false, _permit: permit }
    }

    /// Sends inputs to embed to the engine's thread. Dropping the receiver cancels them.
    pub fn embed(&self, inputs: VecDeque<Vec<u32>>) -> oneshot::Receiver<Result<Vec<Vec<f32>>, ApiError>> {
        let (reply, received) = oneshot::channel();
        // Without the thread the sender is dropped, which ends the wait.
        let _ = self.commands.send(Command::Embed(EmbeddingJob { inputs, done: Vec::new(), reply }));
        received
    }

    /// Ends the threads of both models. All requests fail.
    pub fn stop(&self) {
        if let Some(model) = &self.image_model {
            model.stop();
        }
        // Without the thread there is nothing to stop.
        let _ = self.commands.send(Command::Stop);
    }
}

/// A request that the engine computes. Dropping it cancels the request.
#[derive(Debug)]
pub struct Ticket {
    id: u64,
    pub mailbox: Arc<Mailbox>,
    server: Arc<Server>,
    is_finished: bool,
    _permit: OwnedSemaphorePermit,
}

impl Ticket {
    /// Notes that the request needs the engine no longer.
    pub fn finish(&mut self) {
        self.is_finished = true;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.is_finished {
            self.server.metrics.cancelled();
            // Without the thread there is nothing to cancel.
            let _ = self.server.commands.send(Command::Cancel(self.id));
        }
    }
}
