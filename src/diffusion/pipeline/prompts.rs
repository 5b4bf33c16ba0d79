//! Encodes prompts, and conditions the UNet on their embeddings.

use std::collections::HashMap;
use std::rc::Rc;

use super::request::{DiffusionEvent, DiffusionRequest, OnDiffusionEvent, emit};
use super::residency::Networks;
use crate::diffusion::gen_protocol::NEGATIVE_PROMPT;
use crate::diffusion::networks::{Condition, Unet};
use crate::gpu::Recorder;
use crate::tensor::Tensor;
use crate::text::clip::ClipTokenizer;
use crate::text::prompt_weights::{PromptWeights, WeightedPrompt};
use crate::{Error, Result};

/// The number of prompts whose embeddings are cached.
const MAX_CACHED_PROMPTS: usize = 64;

/// Maximum number of windows per prompt: 4,800 tokens.
const MAX_WINDOWS: usize = 64;

/// The embeddings of a prompt that condition the UNet.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PromptEmbeds {
    /// Hidden states of both encoders, concatenated: [positions, width].
    pub states: Vec<f32>,
    /// The pooled embedding.
    pub pooled: Vec<f32>,
}

/// The ids of a window, and their weights.
type WeightedWindow = (Vec<u32>, Vec<f32>);

/// The tokenizers, and the embeddings of earlier prompts.
pub(super) struct Prompts {
    tokenizers: Rc<[ClipTokenizer; 2]>,
    /// By text, and whether it was read with weights.
    cache: HashMap<(String, bool), PromptEmbeds>,
}

impl Prompts {
    pub(super) fn new(tokenizers: Rc<[ClipTokenizer; 2]>) -> Self {
        Self { tokenizers, cache: HashMap::new() }
    }

    /// The embeddings of the prompts: with guidance, those of the negative prompt come first. All have the same number
    /// of positions.
    pub(super) async fn encode_all(
        &mut self,
        networks: &mut Networks,
        request: &DiffusionRequest,
        on_event: OnDiffusionEvent<'_>,
    ) -> Result<Vec<PromptEmbeds>> {
        let negative = request.negative_prompt.as_deref().filter(|_| request.is_guided());
        let weighted = match request.prompt_weights {
            PromptWeights::Off => false,
            PromptWeights::On => true,
            PromptWeights::Auto => [Some(request.prompt.as_str()), negative]
                .iter()
                .flatten()
                .any(|text| WeightedPrompt::parse(text).has_numbers),
        };
        let mut encoded = Vec::new();
        if request.is_guided() {
            encoded.push(match negative {
                None if networks.checkpoint.force_zeros_for_empty_prompt => {
                    let unet = &networks.checkpoint.unet.1;
                    let positions = networks.checkpoint.text[0].1.max_positions;
                    PromptEmbeds {
                        states: vec![0.0; positions * unet.cross_attention_dim],
                        pooled: vec![0.0; unet.pooled_width()],
                    }
                }
                negative => self.encode(networks, negative.unwrap_or_default(), weighted, on_event).await?,
            });
        }
        encoded.push(self.encode(networks, &request.prompt, weighted, on_event).await?);
        let longest = encoded.iter().map(|encoded| encoded.states.len()).max().unwrap_or(0);
        for (index, embeds) in encoded.iter_mut().enumerate() {
            if embeds.states.len() == longest {
                continue;
            }
            // A zero embedding is padded with zeros, a shorter text with windows of an empty text.
            if index == 0 && request.is_guided() && embeds.states.iter().all(|value| *value == 0.0) {
                embeds.states.resize(longest, 0.0);
                continue;
            }
            let empty = self.encode(networks, "", false, on_event).await?.states;
            while embeds.states.len() < longest && !empty.is_empty() {
                embeds.states.extend(&empty);
            }
        }
        Ok(encoded)
    }

    /// The windows of a text for both encoders, the same number for each.
    fn windows(
        &self,
        networks: &Networks,
        text: &str,
        weighted: bool,
        on_event: OnDiffusionEvent<'_>,
    ) -> Result<[Vec<WeightedWindow>; 2]> {
        let mut windows = [Vec::new(), Vec::new()];
        let encoders = networks.checkpoint.text.iter().zip(&*self.tokenizers);
        let mut cut = None;
        for (windows, ((_, config), tokenizer)) in windows.iter_mut().zip(encoders) {
            let length = config.max_positions;
            if weighted {
                *windows = tokenizer.weighted_windows(&WeightedPrompt::parse(text), length)?;
                continue;
            }
            let window = tokenizer.window(text, length)?;
            cut = cut.or(window.dropped);
            windows.push((window.ids, vec![1.0; length]));
        }
        let count = windows.iter().map(Vec::len).max().unwrap_or(0);
        if count > MAX_WINDOWS {
            let room = networks.checkpoint.text[0].1.max_positions.saturating_sub(2);
            return Err(Error::PromptTooLong { tokens: count * room, limit: MAX_WINDOWS * room });
        }
        for (windows, ((_, config), tokenizer)) in
            windows.iter_mut().zip(networks.checkpoint.text.iter().zip(&*self.tokenizers))
        {
            let length = config.max_positions;
            while windows.len() < count {
                windows.push((tokenizer.window("", length)?.ids, vec![1.0; length]));
            }
        }
        // Don't report truncation of the built-in negative prompt: the user did not write it.
        if text != NEGATIVE_PROMPT
            && let Some(dropped) = cut
        {
            emit(on_event, DiffusionEvent::PromptCut { dropped: &dropped })?;
        }
        Ok(windows)
    }

    async fn encode(
        &mut self,
        networks: &mut Networks,
        text: &str,
        weighted: bool,
        on_event: OnDiffusionEvent<'_>,
    ) -> Result<PromptEmbeds> {
        let key = (text.to_owned(), weighted);
        if let Some(encoded) = self.cache.get(&key) {
            return Ok(encoded.clone());
        }
        let [first, second] = self.windows(networks, text, weighted, on_event)?;
        let mut encoded = PromptEmbeds { states: Vec::new(), pooled: Vec::new() };
        for windows in first.into_iter().zip(second) {
            let window = encode_window(networks, windows.into(), on_event).await?;
            encoded.states.extend(window.states);
            // The pooled embedding is that of the first window, as in AUTOMATIC1111's web UI.
            if encoded.pooled.is_empty() {
                encoded.pooled = window.pooled;
            }
        }
        if self.cache.len() >= MAX_CACHED_PROMPTS {
            self.cache.clear();
        }
        self.cache.insert(key, encoded.clone());
        Ok(encoded)
    }
}

/// The embeddings of one window of both encoders: ids and weights.
async fn encode_window(
    networks: &mut Networks,
    windows: [WeightedWindow; 2],
    on_event: OnDiffusionEvent<'_>,
) -> Result<PromptEmbeds> {
    let gpu = networks.gpu.clone();
    let encoders = networks.text(on_event).await?;
    let mut recorder = gpu.record();
    let mut pending = Vec::new();
    for (encoder, (ids, weights)) in encoders.iter().zip(&windows) {
        let encoding = encoder.forward(&mut recorder, ids)?;
        let pooled = encoding.pooled.map(|pooled| pooled.read_back(&mut recorder));
        pending.push((encoding.hidden.columns(), encoding.hidden.read_back(&mut recorder), pooled, weights));
    }
    recorder.submit()?;
    let mut states = Vec::new();
    let mut pooled = Vec::new();
    for (columns, hidden, last, weights) in pending {
        let mut hidden = hidden.values::<f32>().await?;
        apply_weights(&mut hidden, columns, weights);
        states.push((columns, hidden));
        // The pooled embedding is that of the last encoder with a projection.
        if let Some(last) = last {
            pooled = last.values().await?;
        }
    }
    Ok(PromptEmbeds { states: concat_columns(&states), pooled })
}

/// Moves each state away from that of the last position (weights above 1), or towards it.
fn apply_weights(states: &mut [f32], columns: usize, weights: &[f32]) {
    let columns = columns.max(1);
    let end = states.len().saturating_sub(columns);
    let end = states[end..].to_vec();
    for (state, weight) in states.chunks_exact_mut(columns).zip(weights) {
        if *weight == 1.0 {
            continue;
        }
        for (value, end) in state.iter_mut().zip(&end) {
            *value = end + weight * (*value - end);
        }
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
