//! The networks of a model: each is loaded when it is needed; under a memory limit, others are dropped first.

use std::rc::Rc;

use super::request::{DiffusionEvent, OnDiffusionEvent, emit};
use crate::diffusion::networks::{TextEncoder, Unet, VaeDecoder, VaeEncoder};
use crate::gpu::Gpu;
use crate::loader::{Loader, OnProgress, vision_precision};
use crate::memory_plan::MemoryPlan;
use crate::tensor::Precision;
use crate::text::clip::ClipTokenizer;
use crate::weights::sdxl::config::VaeConfig;
use crate::weights::sdxl::{SdxlCheckpoint, TEXT_1, TEXT_2, UNET, VAE};
use crate::weights::view::Weights;
use crate::{Error, Result};

/// Device memory left for activations: enough for the autoencoder in tiles. One pass takes more, where it is free.
const WORKING_BYTES: u64 = 1 << 30;

/// How a pipeline loads its networks.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct DiffusionOptions {
    /// Precision of the matrices of the UNet and the text encoders. `None`: as stored in the files.
    pub precision: Option<Precision>,
    /// Called with the bytes loaded since the last call. `ControlFlow::Break` cancels.
    pub on_progress: Option<OnProgress>,
    /// What [`DiffusionPipeline::tokenizers`](super::DiffusionPipeline::tokenizers) read from the same checkpoint.
    /// `None`: it is read.
    pub tokenizers: Option<Rc<[ClipTokenizer; 2]>>,
}

impl DiffusionOptions {
    /// Sets [`Self::precision`].
    pub fn with_precision(self, precision: impl Into<Option<Precision>>) -> Self {
        Self { precision: precision.into(), ..self }
    }

    /// Sets [`Self::on_progress`].
    pub fn with_progress(self, on_progress: OnProgress) -> Self {
        Self { on_progress: Some(on_progress), ..self }
    }

    /// Sets [`Self::tokenizers`].
    pub fn with_tokenizers(self, tokenizers: impl Into<Option<Rc<[ClipTokenizer; 2]>>>) -> Self {
        Self { tokenizers: tokenizers.into(), ..self }
    }
}

/// The networks of an opened model, on the device or not.
pub(super) struct Networks {
    pub(super) gpu: Gpu,
    pub(super) checkpoint: SdxlCheckpoint,
    pub(super) precision: Precision,
    pub(super) plan: MemoryPlan,
    on_progress: Option<OnProgress>,
    text: Option<[TextEncoder; 2]>,
    unet: Option<Unet>,
    decoder: Option<VaeDecoder>,
}

/// The networks that are loaded and dropped as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Text,
    Unet,
    Vae,
}

impl Part {
    const ALL: [Self; 3] = [Self::Text, Self::Vae, Self::Unet];

    fn bytes(self, plan: &MemoryPlan) -> u64 {
        let names: &[&str] = match self {
            Self::Text => &[TEXT_1, TEXT_2],
            Self::Unet => &[UNET],
            Self::Vae => &[VAE],
        };
        plan.parts.iter().filter(|(name, _)| names.contains(name)).map(|(_, bytes)| bytes).sum()
    }
}

impl Networks {
    /// The networks of a model, none of them loaded.
    ///
    /// # Errors
    /// As [`SdxlCheckpoint::check`]; [`Error::OutOfMemory`] if the largest network alone exceeds the memory limit.
    pub(super) fn new(gpu: &Gpu, checkpoint: SdxlCheckpoint, options: DiffusionOptions) -> Result<Self> {
        checkpoint.check()?;
        let precision = options.precision.unwrap_or_else(|| checkpoint.stored_precision());
        let plan = MemoryPlan::for_diffusion(&checkpoint, precision);
        if let (Some(limit), Some((part, needed))) =
            (gpu.memory().limit, plan.parts.iter().max_by_key(|(_, bytes)| *bytes))
            && *needed > limit
        {
            let what = format!("the {part} at {precision}");
            return Err(Error::OutOfMemory { what, needed: *needed, available: limit });
        }
        let (gpu, on_progress) = (gpu.clone(), options.on_progress);
        Ok(Self { gpu, checkpoint, precision, plan, on_progress, text: None, unet: None, decoder: None })
    }

    pub(super) fn vae_config(&self) -> &VaeConfig {
        &self.checkpoint.vae.1
    }

    fn is_loaded(&self, part: Part) -> bool {
        match part {
            Part::Text => self.text.is_some(),
            Part::Unet => self.unet.is_some(),
            Part::Vae => self.decoder.is_some(),
        }
    }

    fn drop(&mut self, part: Part) {
        match part {
            Part::Text => self.text = None,
            Part::Unet => self.unet = None,
            Part::Vae => self.decoder = None,
        }
        self.gpu.trim();
    }

    /// The bytes of the largest network that is not loaded, and of activations.
    pub(super) fn missing_bytes(&self) -> u64 {
        let missing = Part::ALL.into_iter().filter(|part| !self.is_loaded(*part)).map(|part| part.bytes(&self.plan));
        missing.max().unwrap_or(0) + WORKING_BYTES.min(self.gpu.memory().limit.unwrap_or(u64::MAX) / 4)
    }

    /// Drops all networks.
    pub(super) fn release(&mut self) {
        Part::ALL.into_iter().for_each(|part| self.drop(part));
    }

    /// Drops all networks but `part`. Returns whether any was loaded.
    pub(super) fn drop_all_but(&mut self, part: Part) -> bool {
        let others = Part::ALL.into_iter().filter(|other| *other != part);
        let loaded: Vec<Part> = others.filter(|other| self.is_loaded(*other)).collect();
        loaded.iter().for_each(|other| self.drop(*other));
        self.gpu.trim();
        !loaded.is_empty()
    }

    /// Drops other networks until `part` fits into the memory limit. The text encoders first: their embeddings are
    /// cached.
    fn make_room(&mut self, part: Part) {
        let Some(limit) = self.gpu.memory().limit else { return };
        let needed = part.bytes(&self.plan) + WORKING_BYTES.min(limit / 4);
        for other in Part::ALL.into_iter().filter(|other| *other != part) {
            if self.gpu.memory().allocated.saturating_add(needed) > limit {
                self.drop(other);
            }
        }
    }

    fn loader(&self, weights: &Weights, precision: Precision) -> Loader {
        Loader::new(&self.gpu, weights.clone(), precision, self.on_progress.clone())
    }

    /// The text encoders.
    pub(super) async fn text(&mut self, on_event: OnDiffusionEvent<'_>) -> Result<&[TextEncoder; 2]> {
        if self.text.is_none() {
            self.make_room(Part::Text);
            let mut encoders = Vec::new();
            for (name, (weights, config)) in [TEXT_1, TEXT_2].into_iter().zip(&self.checkpoint.text) {
                emit(on_event, DiffusionEvent::Loading { part: name })?;
                encoders.push(TextEncoder::load(&self.loader(weights, self.precision), config).await?);
            }
            self.gpu.flush_writes().await?;
            self.text = encoders.try_into().ok();
        }
        self.text.as_ref().ok_or_else(not_loaded)
    }

    /// The UNet.
    pub(super) async fn unet(&mut self, on_event: OnDiffusionEvent<'_>) -> Result<&Unet> {
        if self.unet.is_none() {
            self.make_room(Part::Unet);
            emit(on_event, DiffusionEvent::Loading { part: UNET })?;
            let (weights, config) = &self.checkpoint.unet;
            let unet = Unet::load(&self.loader(weights, self.precision), config).await?;
            self.gpu.flush_writes().await?;
            self.unet = Some(unet);
        }
        self.unet.as_ref().ok_or_else(not_loaded)
    }

    /// The autoencoder's decoder.
    pub(super) async fn decoder(&mut self, on_event: OnDiffusionEvent<'_>) -> Result<&VaeDecoder> {
        if self.decoder.is_none() {
            let loader = self.vae_loader(on_event)?;
            let decoder = VaeDecoder::load(&loader, self.vae_config()).await?;
            self.gpu.flush_writes().await?;
            self.decoder = Some(decoder);
        }
        self.decoder.as_ref().ok_or_else(not_loaded)
    }

    /// The autoencoder's encoder. An image needs it once, so it is not stored.
    pub(super) async fn encoder(&mut self, on_event: OnDiffusionEvent<'_>) -> Result<VaeEncoder> {
        let loader = self.vae_loader(on_event)?;
        VaeEncoder::load(&loader, self.vae_config()).await
    }

    fn vae_loader(&mut self, on_event: OnDiffusionEvent<'_>) -> Result<Loader> {
        self.make_room(Part::Vae);
        emit(on_event, DiffusionEvent::Loading { part: VAE })?;
        Ok(self.loader(&self.checkpoint.vae.0, vision_precision(self.precision)))
    }
}

fn not_loaded() -> Error {
    Error::Internal("a network is not loaded".to_owned())
}
