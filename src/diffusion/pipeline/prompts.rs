//! Prompts as embeddings, and the UNet's condition on them.

use std::collections::HashMap;

use super::request::{DiffusionEvent, DiffusionRequest, OnDiffusionEvent, emit};
use super::residency::Networks;
use crate::Result;
use crate::diffusion::gen_protocol::NEGATIVE_PROMPT;
use crate::diffusion::networks::{Condition, Unet};
use crate::gpu::Recorder;
use crate::tensor::Tensor;
use crate::text::clip::ClipTokenizer;
use crate::weights::sdxl::SdxlCheckpoint;

/// The number of prompts whose embeddings are cached.
const MAX_CACHED_PROMPTS: usize = 64;

/// The embeddings of a prompt that condition the UNet.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PromptEmbeds {
    /// Hidden states of both encoders, concatenated: [positions, width].
    pub states: Vec<f32>,
    /// The pooled embedding.
    pub pooled: Vec<f32>,
}

/// The tokenizers, and the embeddings of earlier prompts.
pub(super) struct Prompts {
    tokenizers: [ClipTokenizer; 2],
    cache: HashMap<String, PromptEmbeds>,
}

impl Prompts {
    /// Loads the tokenizers.
    ///
    /// # Errors
    /// As [`ClipTokenizer::load`].
    pub(super) async fn new(checkpoint: &SdxlCheckpoint) -> Result<Self> {
        let [first, second] = &checkpoint.tokenizers;
        let tokenizers = [
            ClipTokenizer::load(&*first.folder, first.pad_token).await?,
            ClipTokenizer::load(&*second.folder, second.pad_token).await?,
        ];
        Ok(Self { tokenizers, cache: HashMap::new() })
    }

    /// The embeddings of the prompts: with guidance, those of the negative prompt come first.
    pub(super) async fn encode_all(
        &mut self,
        networks: &mut Networks,
        request: &DiffusionRequest,
        on_event: OnDiffusionEvent<'_>,
    ) -> Result<Vec<PromptEmbeds>> {
        let mut encoded = Vec::new();
        if request.is_guided() {
            encoded.push(match &request.negative_prompt {
                None if networks.checkpoint.force_zeros_for_empty_prompt => {
                    let unet = &networks.checkpoint.unet.1;
                    let positions = networks.checkpoint.text[0].1.max_positions;
                    PromptEmbeds {
                        states: vec![0.0; positions * unet.cross_attention_dim],
                        pooled: vec![0.0; unet.pooled_width()],
                    }
                }
                negative => self.encode(networks, negative.as_deref().unwrap_or_default(), on_event).await?,
            });
        }
        encoded.push(self.encode(networks, &request.prompt, on_event).await?);
        Ok(encoded)
    }

    async fn encode(
        &mut self,
        networks: &mut Networks,
        text: &str,
        on_event: OnDiffusionEvent<'_>,
    ) -> Result<PromptEmbeds> {
        if let Some(encoded) = self.cache.get(text) {
            return Ok(encoded.clone());
        }
        let mut windows = Vec::new();
        for ((_, config), tokenizer) in networks.checkpoint.text.iter().zip(&self.tokenizers) {
            windows.push(tokenizer.window(text, config.max_positions)?);
        }
        // Don't report truncation of the built-in negative prompt: the user did not write it.
        if text != NEGATIVE_PROMPT
            && let Some(dropped) = windows.iter().find_map(|window| window.dropped.as_deref())
        {
            emit(on_event, DiffusionEvent::PromptCut { dropped })?;
        }
        let gpu = networks.gpu.clone();
        let encoders = networks.text(on_event).await?;
        let mut recorder = gpu.record();
        let mut pending = Vec::new();
        for (encoder, window) in encoders.iter().zip(&windows) {
            let encoding = encoder.forward(&mut recorder, &window.ids)?;
            let pooled = encoding.pooled.map(|pooled| pooled.read_back(&mut recorder));
            pending.push((encoding.hidden.columns(), encoding.hidden.read_back(&mut recorder), pooled));
        }
        recorder.submit()?;
        let mut states = Vec::new();
        let mut pooled = Vec::new();
        for (columns, hidden, last) in pending {
            states.push((columns, hidden.values::<f32>().await?));
            // The pooled embedding is that of the last encoder with a projection.
            if let Some(last) = last {
                pooled = last.values().await?;
            }
        }
        let encoded = PromptEmbeds { states: concat_columns(&states), pooled };
        if self.cache.len() >= MAX_CACHED_PROMPTS {
            self.cache.clear();
        }
        self.cache.insert(text.to_owned(), encoded.clone());
        Ok(encoded)
    }
}

/// Uploads the embeddings of a batch, and the sizes.
pub(super) fn condition(
    recorder: &mut Recorder,
    unet: &Unet,
    encoded: &[PromptEmbeds],
    request: &DiffusionRequest,
) -> Result<Condition> {
    let batch = encoded.len();
    let states: Vec<f32> = encoded.iter().flat_map(|encoded| encoded.states.iter().copied()).collect();
    let pooled: Vec<f32> = encoded.iter().flat_map(|encoded| encoded.pooled.iter().copied()).collect();
    let width = unet.config().cross_attention_dim;
    let states = Tensor::upload(recorder, &[states.len() / width, width], &states, "text states")?;
    let pooled = Tensor::upload(recorder, &[batch, pooled.len() / batch], &pooled, "pooled text")?;
    let (height, width) = (request.height as f32, request.width as f32);
    // Original size, crop offset, target size.
    let ids = [height, width, 0.0, 0.0, height, width];
    unet.condition(recorder, &states, &pooled, &vec![ids; batch])
}

/// Concatenates the columns of matrices with the same number of rows. Each matrix: (columns, values).
fn concat_columns(parts: &[(usize, Vec<f32>)]) -> Vec<f32> {
    let rows = parts.iter().map(|(columns, values)| values.len() / columns.max(&1)).min().unwrap_or(0);
    let row = |row: usize| {
        parts.iter().flat_map(move |(columns, values)| values[row * columns..(row + 1) * columns].iter().copied())
    };
    (0..rows).flat_map(row).collect()
}
