//! A conversation whose model can leave the device and come back.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use mgm::gpu::Gpu;
use mgm::image::Image;
use mgm::memory_plan::MemoryPlan;
use mgm::session::{Chat, Event, LoadOptions, ModelText, image_sources};
use mgm::text::Turn;
use mgm::weights::model_files::ModelFiles;

use crate::interrupt::continue_unless;
use crate::load::load_model;

/// A conversation and its language model. The model can leave the device to make room for an image model; the
/// conversation is restored when it is loaded again.
pub struct ResidentChat {
    gpu: Gpu,
    files: ModelFiles,
    options: LoadOptions,
    text: ModelText,
    system: Option<String>,
    /// Whether to measure kernels before the model's first load on this GPU.
    tune: bool,
    pub allow_special_tokens: bool,
    weight_bytes: u64,
    stop: Arc<AtomicBool>,
    chat: Option<Chat>,
    /// The conversation while the model is not loaded.
    turns: Vec<Turn>,
    /// All images of the conversation, in order.
    images: Vec<Image>,
}

impl ResidentChat {
    pub fn new(
        gpu: &Gpu,
        files: ModelFiles,
        (options, text): (LoadOptions, ModelText),
        system: Option<String>,
        tune: bool,
        stop: &Arc<AtomicBool>,
    ) -> mgm::Result<Self> {
        let weight_bytes = MemoryPlan::for_files(&files, &options)?.weights();
        Ok(Self {
            gpu: gpu.clone(),
            files,
            options,
            text,
            system,
            tune,
            allow_special_tokens: false,
            weight_bytes,
            stop: stop.clone(),
            chat: None,
            turns: Vec::new(),
            images: Vec::new(),
        })
    }

    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    pub fn is_loaded(&self) -> bool {
        self.chat.is_some()
    }

    /// Device memory that loading needs, in bytes.
    pub fn missing_bytes(&self) -> u64 {
        if self.is_loaded() { 0 } else { self.weight_bytes }
    }

    /// Loads the model and restores the conversation, if it is not loaded.
    ///
    /// # Errors
    /// As [`load_model`].
    pub async fn load(&mut self) -> mgm::Result<&mut Chat> {
        let chat = match self.chat.take() {
            Some(chat) => chat,
            None => {
                let model =
                    load_model(&self.gpu, &self.files, &self.options, &self.text, self.tune, &self.stop).await?;
                let mut chat = model.chat();
                chat.allow_special_tokens(self.allow_special_tokens);
                let (system, turns) = (self.system.clone(), self.turns.clone());
                let mut on_event = |_: Event<'_>| continue_unless(&self.stop);
                chat.restore(system, turns, &image_sources(&self.images), &mut on_event).await?;
                chat
            }
        };
        Ok(self.chat.insert(chat))
    }

    /// Uses another device. The model is loaded when it is needed.
    pub fn move_to(&mut self, gpu: &Gpu) {
        if let Some(chat) = self.chat.take() {
            self.turns.clone_from(&chat.conversation().turns);
        }
        self.gpu = gpu.clone();
    }

    /// Drops the model from the device but keeps the conversation.
    pub fn release(&mut self) {
        if let Some(chat) = self.chat.take() {
            self.turns.clone_from(&chat.conversation().turns);
        }
        self.gpu.trim();
    }

    /// Keeps images of the conversation for when it has to be restored.
    pub fn keep_images(&mut self, images: &[Image]) {
        self.images.extend_from_slice(images);
    }

    /// Starts a new conversation.
    pub fn reset(&mut self) {
        self.turns.clear();
        self.images.clear();
        if let Some(chat) = &mut self.chat {
            chat.reset();
        }
    }
}
