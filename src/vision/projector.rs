//! The projector from visual features to the language model's embeddings.

use crate::Result;
use crate::gpu::Recorder;
use crate::loader::Loader;
use crate::nn::linear::Linear;
use crate::ops::{self, Activation, Epilogue};
use crate::tensor::Tensor;
use crate::weights::config::{ProjectorKind, VisionConfig};
use crate::weights::expected;

/// Linear layers with GELU between them; no layer for `identity`.
#[derive(Debug)]
pub struct Projector {
    layers: Vec<Linear>,
}

impl Projector {
    /// Loads `0.weight`, `2.weight` and so on. The odd numbers are the GELUs.
    ///
    /// # Errors
    /// As [`Loader::matrix`].
    pub async fn load(loader: &Loader, config: &VisionConfig, hidden_size: usize) -> Result<Self> {
        let loader = loader.network(expected::projector(config, hidden_size));
        let count = match config.projector {
            ProjectorKind::Identity => 0,
            ProjectorKind::Mlp(count) => count,
        };
        let mut layers = Vec::new();
        for layer in 0..count {
            layers.push(Linear::load(&loader, 2 * layer).await?);
        }
        Ok(Self { layers })
    }

    /// Projects visual features [tokens, width] to embeddings [tokens, hidden_size].
    ///
    /// # Errors
    /// [`Error::WrongShape`](crate::Error::WrongShape) for another width.
    pub fn forward(&self, recorder: &mut Recorder, x: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        for (index, layer) in self.layers.iter().enumerate() {
            let last = index + 1 == self.layers.len();
            let activation = (!last).then_some(Activation::GeluErf);
            x = ops::linear(recorder, &x, &layer.weight, Epilogue { activation, ..layer.epilogue() })?;
        }
        Ok(x)
    }
}
