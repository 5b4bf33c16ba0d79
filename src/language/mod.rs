//! The language model: a decoder-only transformer with RoPE, grouped-query attention and feed-forward layers, dense or
//! a mixture of experts. The same code runs all architectures;
//! [`LayerConfig`](crate::weights::config::LayerConfig) says how their layers differ.

mod batch;
mod cache;
mod choose;
#[cfg_attr(target_arch = "wasm32", path = "constrained_browser.rs")]
mod constrained;
mod constraint;
mod generate;
mod layer;
mod paged;

use std::ops::ControlFlow;

use crate::gpu::{DryRunReport, Gpu, Recorder};
use crate::loader::Loader;
use crate::ops::{self, Epilogue, NO_ROW, Norm, Sampling};
use crate::tensor::{Matrix, Precision, Tensor};
use crate::weights::config::LanguageConfig;
use crate::weights::expected;
use crate::{Error, Result};

pub use batch::{BatchCache, BatchGenerator};
pub use cache::Cache;
use cache::RecordedStep;
pub use choose::{ChosenTokens, RowControls, choose_tokens};
pub use constrained::AnyConstraint;
pub use constraint::Constraint;
pub use generate::{LogitControls, TokenGenerator, TokenLogprob, TokenLogprobs};
use layer::Layer;
pub use paged::{PagedCache, PagedStep, StepRows};

/// Positions of a prefill chunk, at most: enough rows to fill a device, few enough that activations stay small.
const CHUNK: usize = 768;
/// The same on a software adapter.
const CHUNK_IN_SOFTWARE: usize = 512;

/// Positions of each chunk of a prompt of `positions`. On a GPU all chunks are about as large: a small last one would
/// leave most of the device idle.
pub fn prefill_chunk(gpu: &Gpu, positions: usize) -> usize {
    if gpu.is_software() {
        return CHUNK_IN_SOFTWARE;
    }
    let chunks = positions.div_ceil(CHUNK).max(1);
    positions.div_ceil(chunks).next_multiple_of(64).max(64)
}

/// A language model on the device.
#[derive(Debug)]
pub struct LanguageModel {
    config: LanguageConfig,
    /// [vocab, hidden]
    embedding: Matrix,
    layers: Vec<Layer>,
    norm: Norm,
    /// [vocab, hidden]; `None` if it is tied to the embedding.
    head: Option<Matrix>,
    /// `[vocab]`
    head_bias: Option<Tensor>,
    /// Whether keys and values are stored in f16.
    half_cache: bool,
}

/// Identifies an image in the input of a language model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ImageId(pub u32);

/// The input of the language model at one position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Position {
    /// A text token.
    Text(u32),
    /// A visual token.
    Visual {
        /// The image it belongs to.
        image: ImageId,
        /// The row among the image's visual tokens.
        row: u32,
    },
}

impl LanguageModel {
    /// Loads the model through `loader`: a checkpoint's weights or random ones.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::WrongShape`] and all errors of reading; [`Error::Cancelled`].
    pub async fn load(loader: &Loader, config: &LanguageConfig) -> Result<Self> {
        let loader = loader.network(expected::language(config));
        let model = loader.pp("model");
        let embedding = model.matrix("embed_tokens.weight").await?;
        let mut layers = Vec::new();
        for index in 0..config.num_layers {
            layers.push(Layer::load(&model.pp("layers").pp(index), config, index).await?);
        }
        let head = if config.tie_word_embeddings { None } else { Some(loader.matrix("lm_head.weight").await?) };
        let head_bias = if config.layer.biases.head { Some(loader.tensor("lm_head.bias").await?) } else { None };
        let mut norm = load_norm(&model, "norm", config).await?;
        if config.logit_scale != 1.0 {
            // The norm's gain is divided instead of the logits.
            let gain: Vec<f32> =
                model.values("norm.weight").await?.iter().map(|gain| gain / config.logit_scale).collect();
            norm.weight = model.upload("norm.weight", &[gain.len()], &gain).await?;
        }
        Ok(Self {
            embedding,
            layers,
            norm,
            head,
            head_bias,
            half_cache: loader.precision() != Precision::F32,
            config: config.clone(),
        })
    }

    /// The configuration that it was loaded with.
    pub fn config(&self) -> &LanguageConfig {
        &self.config
    }

    /// Embeddings of positions, [positions, hidden]: rows of the embedding table, or of the visual tokens of `images`.
    /// Some models, such as Gemma, multiply both by a factor.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a token outside the vocabulary, or a position of an image that is not in
    /// `images`.
    pub fn embed(
        &self,
        recorder: &mut Recorder,
        positions: &[Position],
        images: &[(ImageId, Tensor)],
    ) -> Result<Tensor> {
        let width = self.config.hidden_size;
        let x = Tensor::temporary(recorder.gpu(), &[positions.len(), width], "embeddings")?;
        let vocab = self.config.vocab_size as u32;
        for position in positions {
            match position {
                Position::Text(id) if *id >= vocab => {
                    return Err(Error::InvalidArgument(format!("token {id} is outside the vocabulary of {vocab}")));
                }
                Position::Visual { image, .. } if images.iter().all(|(id, _)| id != image) => {
                    return Err(Error::InvalidArgument(format!("the visual tokens of image {} are missing", image.0)));
                }
                _ => {}
            }
        }
        let text = |position: &Position| match position {
            Position::Text(id) => *id,
            Position::Visual { .. } => NO_ROW,
        };
        let ids: Vec<u32> = positions.iter().map(text).collect();
        let ids = Tensor::upload(recorder, &[ids.len()], &ids, "token ids")?;
        ops::gather(recorder, &ids, 0, &self.embedding, self.embedding_scale(), &x)?;
        for (id, tokens) in images {
            let row = |position: &Position| match position {
                Position::Visual { image, row } if image == id => *row,
                _ => NO_ROW,
            };
            let rows: Vec<u32> = positions.iter().map(row).collect();
            if rows.iter().all(|row| *row == NO_ROW) {
                continue;
            }
            let rows = Tensor::upload(recorder, &[rows.len()], &rows, "visual rows")?;
            ops::gather_rows(recorder, &rows, tokens, self.embedding_scale(), &x)?;
        }
        Ok(x)
    }

    /// The embeddings [count, hidden] of tokens that were sampled on the device: `sampled[slot..]`.
    ///
    /// # Errors
    /// [Device errors](crate::gpu).
    pub fn embed_sampled(
        &self,
        recorder: &mut Recorder,
        sampled: &Tensor,
        slot: usize,
        count: usize,
    ) -> Result<Tensor> {
        let x = Tensor::temporary(recorder.gpu(), &[count, self.config.hidden_size], "embedding")?;
        ops::gather(recorder, sampled, slot, &self.embedding, self.embedding_scale(), &x)?;
        Ok(x)
    }

    fn embedding_scale(&self) -> f32 {
        self.config.embedding_scale
    }

    /// Runs all layers over x [positions, hidden], the positions after those in the cache, and appends their keys and
    /// values to it. Returns the residual stream after the last layer (x itself, changed in place).
    ///
    /// # Errors
    /// [Device errors](crate::gpu); [`Error::WrongShape`].
    pub fn forward(&self, recorder: &mut Recorder, x: &Tensor, cache: &mut Cache) -> Result<Tensor> {
        let position = cache.length();
        cache.reserve(recorder, position + x.rows())?;
        let (layers, tables) = cache.caches.parts()?;
        for (layer, keys_values) in self.layers.iter().zip(layers) {
            layer.forward(recorder, x, tables, keys_values, position)?;
        }
        cache.caches.length += x.rows();
        Ok(x.clone())
    }

    /// The same. Between layers that take long, waits for the device and calls `on_wait`; [`ControlFlow::Break`] stops,
    /// and the cache keeps its length.
    ///
    /// # Errors
    /// As [`Self::forward`]; [`Error::Cancelled`] if `on_wait` stopped it.
    pub async fn forward_and_wait(
        &self,
        recorder: &mut Recorder,
        x: &Tensor,
        cache: &mut Cache,
        on_wait: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<Tensor> {
        let position = cache.length();
        cache.reserve(recorder, position + x.rows())?;
        let (layers, tables) = cache.caches.parts()?;
        for (layer, keys_values) in self.layers.iter().zip(layers) {
            if recorder.is_long() {
                recorder.finish().await?;
                if on_wait().is_break() {
                    return Err(Error::Cancelled);
                }
            }
            layer.forward(recorder, x, tables, keys_values, position)?;
        }
        cache.caches.length += x.rows();
        Ok(x.clone())
    }

    /// Runs all layers over the token `sampled[slot]`, which follows the positions in `cache` (made by [`Self::cache`]
    /// of this model). Returns the residual stream after the last layer, [1, hidden]; the next step overwrites it. The
    /// layers are recorded once per 64 positions and replayed in between.
    ///
    /// # Errors
    /// [Device errors](crate::gpu).
    pub fn decode_step(
        &self,
        recorder: &mut Recorder,
        sampled: &Tensor,
        slot: usize,
        cache: &mut Cache,
    ) -> Result<Tensor> {
        let x = match &cache.step_input {
            Some(x) => x.clone(),
            None => Tensor::zeros(recorder.gpu(), &[1, self.config.hidden_size], "decoding step")?,
        };
        cache.step_input = Some(x.clone());
        ops::gather(recorder, sampled, slot, &self.embedding, self.embedding_scale(), &x)?;
        let position = cache.length();
        if let Some(step) = &cache.recorded_step
            && let Some(later) = position.checked_sub(step.position)
            && later <= step.replay.positions()
        {
            recorder.replay(&step.replay, later)?;
            cache.caches.length += 1;
            return Ok(x);
        }
        cache.reserve(recorder, position + 1)?;
        // Return its buffers to the pool first, so that the new recording reuses them.
        cache.recorded_step = None;
        let ((), replay) = recorder.capture(|recorder| self.forward(recorder, &x, cache).map(drop))?;
        cache.recorded_step = replay.map(|replay| RecordedStep { position, replay });
        Ok(x)
    }

    /// Logits [positions, vocab] of the residual stream x [positions, hidden].
    ///
    /// # Errors
    /// [Device errors](crate::gpu).
    pub fn logits(&self, recorder: &mut Recorder, x: &Tensor) -> Result<Tensor> {
        let head = self.head.as_ref().unwrap_or(&self.embedding);
        let epilogue = Epilogue { bias: self.head_bias.as_ref(), ..Default::default() };
        let logits = ops::linear_normed(recorder, x, &self.norm, head, epilogue)?;
        if let Some(cap) = self.config.logit_cap {
            ops::softcap(recorder, &logits, cap)?;
        }
        Ok(logits)
    }

    /// The last hidden states [positions, hidden] of the residual stream x [positions, hidden]: with the final norm, as
    /// `last_hidden_state` of transformers.
    ///
    /// # Errors
    /// [Device errors](crate::gpu).
    pub fn hidden_states(&self, recorder: &mut Recorder, x: &Tensor) -> Result<Tensor> {
        ops::norm(recorder, x, &self.norm)
    }

    /// Samples the token after the last row of x [positions, hidden] and writes it to `sampled[slot]`. `draw` is
    /// uniform in [0, 1).
    ///
    /// # Errors
    /// [Device errors](crate::gpu); [`Error::WrongShape`].
    pub fn sample_next(
        &self,
        recorder: &mut Recorder,
        x: &Tensor,
        sampling: Sampling,
        draw: f32,
        sampled: &Tensor,
        slot: usize,
    ) -> Result<()> {
        let logits = self.last_logits(recorder, x)?;
        ops::sample(recorder, &logits, sampling, draw, sampled, slot)
    }

    /// Logits [1, vocab] of the last row of x [positions, hidden].
    ///
    /// # Errors
    /// [Device errors](crate::gpu).
    pub fn last_logits(&self, recorder: &mut Recorder, x: &Tensor) -> Result<Tensor> {
        if x.rows() == 1 {
            return self.logits(recorder, x);
        }
        let last = Tensor::temporary(recorder.gpu(), &[1, x.columns()], "last position")?;
        x.slice_rows(x.rows() - 1..x.rows()).copy_to(recorder, &last, 0);
        self.logits(recorder, &last)
    }

    /// Records the dispatches of prompts and answers without running them ([`Gpu::dry_run`]): full and partial prefill
    /// chunks, and steps with few and with many keys.
    ///
    /// # Errors
    /// [Device errors](crate::gpu).
    pub fn dry_run(&self, gpu: &Gpu) -> Result<DryRunReport> {
        let mut recorder = gpu.dry_run();
        // All layers share one cache: nothing is executed.
        let chunk = if gpu.is_software() { CHUNK_IN_SOFTWARE } else { CHUNK };
        let (capacity, head_dim) = (2 * chunk, self.config.head_dim);
        let columns = self.config.num_kv_heads * head_dim;
        let cache = ops::KvCache::new(gpu, capacity, columns, self.half_cache)?;
        let ropes = self.config.ropes(capacity);
        let tables = ropes.iter().map(|rope| ops::RopeTable::new(gpu, capacity, head_dim, rope));
        let tables: Vec<ops::RopeTable> = tables.collect::<Result<_>>()?;
        let sampled = Tensor::zeros(gpu, &[1], "sampled tokens")?;
        // Row counts at which kernels change.
        let chunks = (0..).map(|shift| chunk >> shift).take_while(|rows| *rows > 2).map(|rows| (rows, 0));
        for (rows, position) in chunks.chain([(2, 0), (1, 0), (1, chunk)]) {
            let x = Tensor::temporary(gpu, &[rows, self.config.hidden_size], "embeddings")?;
            let first = Tensor::temporary(gpu, &[1, self.config.hidden_size], "embedding")?;
            ops::gather(&mut recorder, &sampled, 0, &self.embedding, 1.0, &first)?;
            for layer in &self.layers {
                layer.forward(&mut recorder, &x, &tables, &cache, position)?;
            }
            // Uses every sampling kernel.
            let drawn = Sampling::GREEDY.with_temperature(1.0).with_top_k(2).with_top_p(0.5);
            for sampling in [Sampling::GREEDY, drawn] {
                self.sample_next(&mut recorder, &x, sampling, 0.0, &sampled, 0)?;
            }
        }
        Ok(recorder.into_report())
    }
}

/// A norm of the residual stream: `name.weight`, and `name.bias` of layer norms.
async fn load_norm(loader: &Loader, name: &str, config: &LanguageConfig) -> Result<Norm> {
    match config.layer.layer_norm {
        true => loader.layer_norm(name, config.rms_norm_eps).await,
        false => loader.rms_norm(name, config.rms_norm_eps, config.norm_unit_offset).await,
    }
}
