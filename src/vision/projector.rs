//! The projector from visual features to the language model's embeddings.

use crate::Result;
use crate::gpu::Recorder;
use crate::loader::Loader;
use crate::ops::{self, Activation, Epilogue};
use crate::tensor::{Matrix, Tensor};
use crate::weights::config::ProjectorKind as Kind;

/// Linear layers with GELU between them; no layer for `identity`.
#[derive(Debug)]
pub struct Projector {
    layers: Vec<(Matrix, Tensor)>,
}

impl Projector {
    /// Loads `0.weight`, `2.weight` and so on. The odd numbers are the GELUs.
    ///
    /// # Errors
    /// As [`Loader::matrix`].
    pub async fn load(loader: &Loader, kind: Kind, width_in: usize, width_out: usize) -> Result<Self> {
        let count = match kind {
            Kind::Identity => 0,
            Kind::Mlp(count) => count,
        };
        let mut layers = Vec::new();
        for layer in 0..count {
            let columns = if layer == 0 { width_in } else { width_out };
            // A single linear layer has no number.
            let part = if count == 1 && loader.contains("weight") { loader.clone() } else { loader.pp(2 * layer) };
            layers.push((part.matrix("weight", width_out, columns).await?, part.tensor("bias", &[width_out]).await?));
        }
        Ok(Self { layers })
    }

    /// Projects [tokens, width_in] to [tokens, width_out].
    ///
    /// # Errors
    /// [`Error::WrongShape`](crate::Error::WrongShape) for another width.
    pub fn forward(&self, recorder: &mut Recorder, x: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        for (index, (weight, bias)) in self.layers.iter().enumerate() {
            let last = index + 1 == self.layers.len();
            let activation = (!last).then_some(Activation::GeluErf);
            x = ops::linear(recorder, &x, weight, Epilogue { bias: Some(bias), activation, ..Default::default() })?;
        }
        Ok(x)
    }
}
