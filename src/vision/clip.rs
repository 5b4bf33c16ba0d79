//! The low-resolution tower: CLIP ViT (Radford et al., 2021), up to the hidden state that Mini-Gemini uses.

use super::slices::Stages;
use crate::Result;
use crate::gpu::Recorder;
use crate::loader::Loader;
use crate::nn::clip_layer::{ClipLayer, ClipLayerConfig};
use crate::ops::{self, Epilogue, Norm};
use crate::tensor::{Inputs, Matrix, Tensor};
use crate::weights::config::ClipConfig;
use crate::weights::expected;

/// A CLIP vision transformer.
#[derive(Debug)]
pub struct ClipVit {
    /// Side of the input image in pixels.
    image_size: usize,
    patch_size: usize,
    /// [width, 3 * patch_size^2]
    patch_embedding: Matrix,
    /// Position embeddings, with the class embedding added to row 0: [1 + patches, width].
    positions: Tensor,
    pre_norm: Norm,
    layers: Vec<ClipLayer>,
}

impl ClipVit {
    /// Loads the layers that compute hidden state `select_layer` ([`ClipConfig::layers_before`]).
    ///
    /// # Errors
    /// As [`Loader::matrix`]; [`Error::Config`](crate::Error::Config) if there is no such layer.
    pub async fn load(loader: &Loader, config: &ClipConfig, select_layer: i32) -> Result<Self> {
        let width = config.hidden_size;
        let needed = config.layers_before(select_layer)?;
        let model = loader.network(expected::clip(config)).inputs(Inputs::F16).pp("vision_model");
        let embeddings = model.pp("embeddings");
        let class = embeddings.values("class_embedding").await?;
        let mut positions = embeddings.values("position_embedding.weight").await?;
        positions.iter_mut().zip(&class).for_each(|(position, class)| *position += class);

        let layer = ClipLayerConfig {
            heads: config.num_heads,
            activation: config.activation,
            eps: config.layer_norm_eps,
            causal: false,
        };
        let mut layers = Vec::new();
        for index in 0..needed {
            layers.push(ClipLayer::load(&model.pp("encoder.layers").pp(index), &layer).await?);
        }
        Ok(Self {
            image_size: config.image_size,
            patch_size: config.patch_size,
            patch_embedding: embeddings.matrix("patch_embedding.weight").await?,
            positions: embeddings.upload("positions", &[positions.len() / width, width], &positions).await?,
            pre_norm: model.layer_norm("pre_layrnorm", config.layer_norm_eps).await?, // the checkpoints' spelling
            layers,
        })
    }

    /// Patches of an image. Each gives one feature.
    pub fn patches(&self) -> usize {
        (self.image_size / self.patch_size).pow(2)
    }

    /// Encodes pixels [3, image_size, image_size] to features [patches, width].
    ///
    /// # Errors
    /// [`Error::WrongShape`](crate::Error::WrongShape) for another shape.
    pub(super) async fn forward(
        &self,
        recorder: &mut Recorder,
        pixels: &Tensor,
        stages: &mut Stages<'_>,
    ) -> Result<Tensor> {
        let side = self.image_size;
        let patches = ops::patches(recorder, pixels, (side, side, 3), true, self.patch_size, 0, self.patches())?;
        let embeddings = Tensor::temporary(recorder.gpu(), self.positions.shape(), "embeddings")?;
        self.positions.copy_to(recorder, &embeddings, 0);
        ops::linear_add(recorder, &patches, &self.patch_embedding, Epilogue::default(), &embeddings, 1)?;
        let x = ops::norm(recorder, &embeddings, &self.pre_norm)?;
        for layer in &self.layers {
            layer.forward(recorder, &x)?;
            stages.part(recorder).await?;
        }
        let features = Tensor::temporary(recorder.gpu(), &[x.rows() - 1, x.columns()], "features")?;
        x.slice_rows(1..x.rows()).copy_to(recorder, &features, 0);
        Ok(features)
    }
}
