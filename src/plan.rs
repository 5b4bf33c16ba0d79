//! How much memory a model needs, before any of it is taken.

use crate::gpu::Gpu;
use crate::load::{LoadOptions, vision_precision};
use crate::ops::KvCache;
use crate::tensor::{Matrix, Precision};
use crate::vision::ConvNextConfig;
use crate::weights::config::{ClipConfig, LanguageConfig, Projector, VisionConfig};
use crate::weights::gguf_model::GgufModel;
use crate::weights::mgm::{Expected, MgmCheckpoint};
use crate::weights::model_files::ModelFiles;
use crate::weights::sdxl::{self, SdxlCheckpoint, VAE};
use crate::weights::view::Weights;
use crate::{Error, Result};

/// The parts that are left out where pictures are looked at in low resolution alone.
const HIGH_RESOLUTION: [&str; 2] = ["ConvNeXt", "patch info mining"];

/// Bytes on the device for each part of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Weights by part, the language model last.
    pub parts: Vec<(&'static str, u64)>,
    /// Keys and values of one position.
    pub cache_per_position: u64,
    /// Positions the model was made for.
    pub max_positions: usize,
}

/// The sizes of a model's vision side.
#[derive(Debug, Clone)]
pub struct VisionSizes {
    /// Its settings.
    pub config: VisionConfig,
    /// The low-resolution tower.
    pub clip: ClipConfig,
    /// The high-resolution tower.
    pub convnext: ConvNextConfig,
}

impl Plan {
    /// The plan for whatever files a model is in.
    pub fn of_files(files: &ModelFiles, options: &LoadOptions) -> Result<Self> {
        match files {
            ModelFiles::Mgm(checkpoint) => Self::of_checkpoint(checkpoint, options),
            ModelFiles::Gguf(model) => Ok(Self::of_gguf(model, options)),
        }
    }

    /// The plan for a checkpoint.
    pub fn of_checkpoint(checkpoint: &MgmCheckpoint, options: &LoadOptions) -> Result<Self> {
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
    pub fn of_gguf(model: &GgufModel, options: &LoadOptions) -> Self {
        Self::new(&model.config, None, options.precision).with_stored(&model.weights, options)
    }

    /// The plan with the language model as large as `weights` store it, where they are kept so.
    fn with_stored(mut self, weights: &Weights, options: &LoadOptions) -> Self {
        let kept = options.keep_stored.then_some(()).and(self.parts.last_mut());
        if let Some((_, bytes)) = kept {
            let tensors = weights.checkpoint().tensors().map(|(_, info)| match info.shape.as_slice() {
                &[rows, columns] => Matrix::bytes_for(info.dtype.precision(), rows, columns),
                _ => vectors(info.elements().unwrap_or(0) as usize),
            });
            *bytes = tensors.sum();
        }
        self
    }

    /// The plan for a model that paints, its matrices at `precision`.
    pub fn of_diffusion(checkpoint: &SdxlCheckpoint, precision: Precision) -> Self {
        Self::of_painting(checkpoint.networks().map(|(name, _, tensors)| (name, tensors)), precision)
    }

    /// The plan for Stable Diffusion XL as it was released, its matrices at `precision`.
    pub fn of_released_diffusion(precision: Precision) -> Self {
        Self::of_painting(sdxl::released(), precision)
    }

    fn of_painting(networks: [(&'static str, Vec<Expected>); 4], precision: Precision) -> Self {
        let part = |(name, tensors): (&'static str, Vec<Expected>)| {
            let precision = if name == VAE { vision_precision(precision) } else { precision };
            let bytes = tensors.iter().map(|(_, shape)| match shape.as_slice() {
                [rows, columns @ ..] if !columns.is_empty() => {
                    Matrix::bytes_for(precision, *rows, columns.iter().product())
                }
                shape => vectors(shape.iter().product()),
            });
            (name, bytes.sum())
        };
        let parts = networks.into_iter().map(part).collect();
        Self { parts, cache_per_position: 0, max_positions: 0 }
    }

    /// The plan for a model of these sizes, its language model at `precision`.
    pub fn new(language: &LanguageConfig, vision: Option<&VisionSizes>, precision: Precision) -> Self {
        let mut parts = Vec::new();
        if let Some(vision) = vision {
            let precision = vision_precision(precision);
            parts.push(("CLIP ViT", clip(&vision.clip, vision.config.select_layer, precision)));
            parts.push((HIGH_RESOLUTION[0], convnext(&vision.convnext, precision)));
            parts.push((HIGH_RESOLUTION[1], mining(&vision.config, precision)));
            parts.push(("projector", projector(&vision.config, language.hidden_size, precision)));
        }
        parts.push(("language model", self::language(language, precision)));
        let kv_width = language.num_kv_heads * language.head_dim;
        Self {
            parts,
            cache_per_position: language.num_layers as u64
                * KvCache::bytes_for(1, kv_width, precision != Precision::F32),
            max_positions: language.max_positions,
        }
    }

    /// Checks that the weights, and keys and values of so many positions, fit into what the user allows.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if not.
    pub fn check(&self, gpu: &Gpu, positions: usize) -> Result<()> {
        let needed = self.weights() + self.cache_per_position * positions as u64;
        match gpu.memory().limit {
            Some(available) if needed > available => Err(Error::OutOfMemory {
                what: format!("the weights, and keys and values of {positions} tokens"),
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

fn vectors(elements: usize) -> u64 {
    elements as u64 * 4
}

fn clip(config: &ClipConfig, select_layer: i32, precision: Precision) -> u64 {
    let (width, inner) = (config.hidden_size, config.intermediate_size);
    let matrix = |rows, columns| Matrix::bytes_for(precision, rows, columns);
    // A tower that cannot give the state is refused when it is loaded.
    let layers = config.layers_before(select_layer).unwrap_or(0);
    let layer = matrix(3 * width, width)
        + matrix(width, width)
        + matrix(inner, width)
        + matrix(width, inner)
        + vectors(9 * width + inner);
    let patches = config.grid() * config.grid();
    matrix(width, 3 * config.patch_size * config.patch_size)
        + vectors((patches + 1) * width + 2 * width)
        + layers as u64 * layer
}

fn convnext(config: &ConvNextConfig, precision: Precision) -> u64 {
    let matrix = |rows, columns| Matrix::bytes_for(precision, rows, columns);
    let mut bytes = matrix(config.widths[0], 48) + vectors(3 * config.widths[0]);
    for stage in 0..4 {
        let width = config.widths[stage];
        if stage > 0 {
            let before = config.widths[stage - 1];
            bytes += matrix(width, 4 * before) + vectors(2 * before + width);
        }
        let block = matrix(4 * width, width) + matrix(width, 4 * width) + vectors((49 + 1 + 2 + 4 + 1 + 1) * width);
        bytes += config.depths[stage] as u64 * block;
    }
    bytes
}

fn mining(config: &VisionConfig, precision: Precision) -> u64 {
    let (low, high) = (config.hidden_size, config.high_hidden_size);
    Matrix::bytes_for(precision, low, low)
        + Matrix::bytes_for(precision, high, low)
        + Matrix::bytes_for(precision, low, high)
        + vectors(4 * low + high)
}

fn projector(config: &VisionConfig, hidden: usize, precision: Precision) -> u64 {
    let Projector::Mlp(layers) = config.projector else { return 0 };
    (0..layers)
        .map(|layer| {
            let columns = if layer == 0 { config.hidden_size } else { hidden };
            Matrix::bytes_for(precision, hidden, columns) + vectors(hidden)
        })
        .sum()
}

fn language(config: &LanguageConfig, precision: Precision) -> u64 {
    let width = config.hidden_size;
    let matrix = |rows, columns| Matrix::bytes_for(precision, rows, columns);
    let (q, kv) = (config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim);
    let gated = matrix(2 * config.intermediate_size, width) + matrix(width, config.intermediate_size);
    let feed_forward = match config.experts {
        Some(experts) => experts.count as u64 * gated + Matrix::bytes_for(Precision::F32, experts.count, width),
        None => gated,
    };
    let layer = matrix(q + 2 * kv, width) + matrix(width, q) + feed_forward + vectors(2 * width);
    let table = Matrix::bytes_for(precision.min(Precision::Q8), config.vocab_size, width);
    let tables = if config.tie_word_embeddings { 1 } else { 2 };
    config.num_layers as u64 * layer + tables * table + vectors(width)
}
