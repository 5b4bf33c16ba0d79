//! CLIP's text encoders (Radford et al., 2021), up to the states that Stable Diffusion XL uses.

use crate::gpu::Recorder;
use crate::loader::Loader;
use crate::nn::clip_layer::{ClipLayer, ClipLayerConfig};
use crate::ops::{self, Epilogue, Norm};
use crate::tensor::{Matrix, Tensor};
use crate::weights::sdxl::config::TextEncoderConfig;
use crate::weights::sdxl::expected;
use crate::{Error, Result};

/// A text encoder.
#[derive(Debug)]
pub struct TextEncoder {
    /// [vocab_size, width]
    tokens: Matrix,
    /// [max_positions, width]
    positions: Matrix,
    layers: Vec<ClipLayer>,
    pooling: Option<Pooling>,
    max_positions: usize,
    vocab_size: usize,
    eos_token: u32,
}

/// The last layer, and the projection of the pooled state.
#[derive(Debug)]
struct Pooling {
    last: ClipLayer,
    norm: Norm,
    /// [projection_dim, width]
    projection: Matrix,
}

/// The encoding of a prompt.
#[derive(Debug, Clone)]
pub struct TextEncoding {
    /// The last layer's input, without the final norm: [positions, width].
    pub hidden: Tensor,
    /// The projected state of the end token, [1, projection_dim], if the encoder has a projection.
    pub pooled: Option<Tensor>,
}

impl TextEncoder {
    /// Loads an encoder: `text_model.…` and, if there is one, `text_projection.weight`.
    ///
    /// # Errors
    /// As [`Loader::matrix`].
    pub async fn load(loader: &Loader, config: &TextEncoderConfig) -> Result<Self> {
        let loader = loader.network(expected::text(config));
        let model = loader.pp("text_model");
        let layer = ClipLayerConfig {
            heads: config.num_heads,
            activation: config.activation,
            eps: config.layer_norm_eps,
            causal: true,
        };
        let load_layer = |index: usize| {
            let loader = model.pp("encoder.layers").pp(index);
            async move { ClipLayer::load(&loader, &layer).await }
        };
        let mut layers = Vec::new();
        for index in 0..config.num_layers - 1 {
            layers.push(load_layer(index).await?);
        }
        // Only the pooled state needs the last layer.
        let pooling = match config.projection_dim {
            None => None,
            Some(_) => Some(Pooling {
                last: load_layer(config.num_layers - 1).await?,
                norm: model.layer_norm("final_layer_norm", config.layer_norm_eps).await?,
                projection: loader.matrix("text_projection.weight").await?,
            }),
        };
        Ok(Self {
            tokens: model.matrix("embeddings.token_embedding.weight").await?,
            positions: model.matrix("embeddings.position_embedding.weight").await?,
            layers,
            pooling,
            max_positions: config.max_positions,
            vocab_size: config.vocab_size,
            eos_token: config.eos_token,
        })
    }

    /// Encodes the ids of a prompt, including its start and end tokens.
    ///
    /// # Errors
    /// [`Error::PromptTooLong`] if a window is longer than the positions; [`Error::InvalidArgument`] for an id outside
    /// the vocabulary.
    pub fn forward(&self, recorder: &mut Recorder, ids: &[u32]) -> Result<TextEncoding> {
        if ids.is_empty() || ids.len() > self.max_positions {
            return Err(Error::PromptTooLong { tokens: ids.len(), limit: self.max_positions });
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.vocab_size) {
            return Err(Error::InvalidArgument(format!(
                "token {id} is outside the text encoder's vocabulary of {}",
                self.vocab_size
            )));
        }
        let x = Tensor::temporary(recorder.gpu(), &[ids.len(), self.tokens.columns()], "text embeddings")?;
        let positions: Vec<u32> = (0..ids.len() as u32).collect();
        let id_tensor = Tensor::upload(recorder, &[ids.len()], ids, "token ids")?;
        let positions = Tensor::upload(recorder, &[ids.len()], &positions, "positions")?;
        ops::gather(recorder, &id_tensor, 0, &self.tokens, 1.0, &x)?;
        ops::gather_add(recorder, &positions, &self.positions, &x)?;
        for layer in &self.layers {
            layer.forward(recorder, &x)?;
        }
        let Some(pooling) = &self.pooling else { return Ok(TextEncoding { hidden: x, pooled: None }) };
        let hidden = Tensor::temporary(recorder.gpu(), x.shape(), "text states")?;
        x.copy_to(recorder, &hidden, 0);
        pooling.last.forward(recorder, &x)?;
        let end = Tensor::temporary(recorder.gpu(), &[1, x.columns()], "end token state")?;
        let position = self.end_of_text(ids);
        x.slice_rows(position..position + 1).copy_to(recorder, &end, 0);
        let normed = ops::norm(recorder, &end, &pooling.norm)?;
        let pooled = ops::linear(recorder, &normed, &pooling.projection, Epilogue::default())?;
        Ok(TextEncoding { hidden, pooled: Some(pooled) })
    }

    /// The position of the first end token. Old configurations have a wrong end token, 2; with them, the position of
    /// the largest id, which is the end token's.
    fn end_of_text(&self, ids: &[u32]) -> usize {
        let end = if self.eos_token == 2 { ids.iter().copied().max() } else { Some(self.eos_token) };
        ids.iter().position(|id| Some(*id) == end).unwrap_or(0)
    }
}
