//! The device memory that a model needs, computed before it is loaded.

use crate::gpu::Gpu;
use crate::loader::{LoadOptions, padded_channels, vision_precision};
use crate::ops::KvCache;
use crate::tensor::{Matrix, Precision};
use crate::weights::config::{ClipConfig, ConvNextConfig, LanguageConfig, VisionConfig};
use crate::weights::expected::{self, ExpectedTensor, Storage};
use crate::weights::gguf_model::GgufModel;
use crate::weights::mgm::MgmCheckpoint;
use crate::weights::model_files::ModelFiles;
use crate::weights::sdxl::{self, SdxlCheckpoint, VAE};
use crate::weights::view::Weights;
use crate::{Error, Result};

/// The parts of the high-resolution branch.
const HIGH_RESOLUTION: [&str; 2] = ["ConvNeXt", "patch info mining"];

/// Bytes on the device for each part of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Weights by part, the language model last.
    pub parts: Vec<(&'static str, u64)>,
    /// Bytes of the keys and values of one position.
    pub cache_per_position: u64,
    /// The context length of the model.
    pub max_positions: usize,
}

/// The sizes of a model's vision side.
#[derive(Debug, Clone)]
pub struct VisionSizes {
    /// The vision settings of `config.json`.
    pub config: VisionConfig,
    /// The low-resolution tower.
    pub clip: ClipConfig,
    /// The high-resolution tower.
    pub convnext: ConvNextConfig,
}

impl MemoryPlan {
    /// The plan for a checkpoint or a GGUF file.
    ///
    /// # Errors
    /// As [`Self::for_checkpoint`].
    pub fn for_files(files: &ModelFiles, options: &LoadOptions) -> Result<Self> {
        match files {
            ModelFiles::Mgm(checkpoint) => Self::for_checkpoint(checkpoint, options),
            ModelFiles::Gguf(model) => Ok(Self::for_gguf(model, options)),
        }
    }

    /// The plan for a checkpoint.
    ///
    /// # Errors
    /// As [`ConvNextConfig::from_weights`].
    pub fn for_checkpoint(checkpoint: &MgmCheckpoint, options: &LoadOptions) -> Result<Self> {
        let vision = match &checkpoint.vision {
            Some(weights) => Some(VisionSizes {
                config: weights.config.clone(),
                clip: weights.clip_config.clone(),
                convnext: ConvNextConfig::from_weights(&weights.convnext)?,
            }),
            None => None,
        };
        let mut plan = Self::new(&checkpoint.config.language, vision.as_ref(), options.precision);
        if !options.high_resolution {
            plan.parts.retain(|(part, _)| !HIGH_RESOLUTION.contains(part));
        }
        Ok(plan.with_stored(&checkpoint.language, options))
    }

    /// The plan for a GGUF file.
    pub fn for_gguf(model: &GgufModel, options: &LoadOptions) -> Self {
        Self::new(&model.config, None, options.precision).with_stored(&model.weights, options)
    }

    /// The plan with the language model's bytes as stored in `weights`, if the options keep the quantization.
    fn with_stored(mut self, weights: &Weights, options: &LoadOptions) -> Self {
        if options.keep_quantization
            && let Some((_, bytes)) = self.parts.last_mut()
        {
            let tensors = weights.checkpoint().tensors().map(|(_, info)| match info.shape.as_slice() {
                &[rows, columns] => Matrix::bytes_for(info.dtype.precision(), rows, columns),
                _ => info.elements().unwrap_or(0) * 4,
            });
            *bytes = tensors.sum();
        }
        self
    }

    /// The plan for a Stable Diffusion XL model with matrices at `precision`.
    pub fn for_diffusion(checkpoint: &SdxlCheckpoint, precision: Precision) -> Self {
        Self::for_networks(checkpoint.networks().map(|(name, _, tensors)| (name, tensors)), precision)
    }

    /// The plan for the released Stable Diffusion XL with matrices at `precision`.
    pub fn for_released_diffusion(precision: Precision) -> Self {
        Self::for_networks(sdxl::released(), precision)
    }

    fn for_networks(networks: [(&'static str, Vec<ExpectedTensor>); 4], precision: Precision) -> Self {
        let part = |(name, mut tensors): (&'static str, Vec<ExpectedTensor>)| {
            // The loader pads the channels of convolutions.
            for tensor in &mut tensors {
                if let [_, channels, _, _] = tensor.shape.as_mut_slice() {
                    *channels = padded_channels(*channels);
                }
            }
            let precision = if name == VAE { vision_precision(precision) } else { precision };
            (name, bytes(&tensors, precision))
        };
        let parts = networks.into_iter().map(part).collect();
        Self { parts, cache_per_position: 0, max_positions: 0 }
    }

    /// The plan for a model of these sizes with the language model at `precision`.
    pub fn new(language: &LanguageConfig, vision: Option<&VisionSizes>, precision: Precision) -> Self {
        let mut parts = Vec::new();
        if let Some(vision) = vision {
            let precision = vision_precision(precision);
            // Layers after the selected one are not loaded. Loading rejects a tower without the selected layer.
            let num_layers = vision.clip.layers_before(vision.config.select_layer).unwrap_or(0);
            let clip = ClipConfig { num_layers, ..vision.clip.clone() };
            parts.push(("CLIP ViT", bytes(&expected::clip(&clip), precision)));
            parts.push((HIGH_RESOLUTION[0], bytes(&expected::convnext(&vision.convnext), precision)));
            parts.push((HIGH_RESOLUTION[1], bytes(&expected::mining(&vision.config), precision)));
            let projector = expected::projector(&vision.config, language.hidden_size);
            parts.push(("projector", bytes(&projector, precision)));
        }
        parts.push(("language model", bytes(&expected::language(language), precision)));
        let kv_width = language.num_kv_heads * language.head_dim;
        Self {
            parts,
            cache_per_position: language.num_layers as u64
                * KvCache::bytes_for(1, kv_width, precision != Precision::F32),
            max_positions: language.max_positions,
        }
    }

    /// Checks that the weights, and keys and values of `positions` positions, fit into the user's memory limit.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if they do not fit.
    pub fn check(&self, gpu: &Gpu, positions: usize) -> Result<()> {
        let needed = self.weights() + self.cache_per_position * positions as u64;
        match gpu.memory().limit {
            Some(available) if needed > available => Err(Error::OutOfMemory {
                what: format!("the weights and a KV cache of {positions} tokens"),
                needed,
                available,
            }),
            _ => Ok(()),
        }
    }

    /// Bytes of all weights.
    pub fn weights(&self) -> u64 {
        self.parts.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// Bytes of the tensors on the device, with matrices at `precision`.
fn bytes(tensors: &[ExpectedTensor], precision: Precision) -> u64 {
    tensors
        .iter()
        .map(|ExpectedTensor { shape, storage, .. }| match (storage.on_device(precision), shape.as_slice()) {
            (None, _) => 0,
            (Some(precision), [rows, columns @ ..]) if *storage != Storage::F32 && !columns.is_empty() => {
                Matrix::bytes_for(precision, *rows, columns.iter().product())
            }
            _ => shape.iter().product::<usize>() as u64 * 4,
        })
        .sum()
}
