//! The UNet that predicts noise (Ronneberger et al., 2015; Podell et al., 2023), conditioned on a prompt and on sizes.

use super::resnet::Resnet;
use super::statistics::NormStats;
use super::transformer::{Transformer, TransformerConfig};
use crate::gpu::Recorder;
use crate::loader::{Loader, padded_channels};
use crate::nn::linear::Linear;
use crate::ops::{self, Activation, ConvEpilogue, ConvMode, Convolution, Epilogue, FeatureMap, GroupNorm};
use crate::tensor::{Inputs, Tensor};
use crate::weights::sdxl::config::{UnetConfig, UnetLevel};
use crate::weights::sdxl::expected;
use crate::{Error, Result};

/// A UNet.
#[derive(Debug)]
pub struct Unet {
    config: UnetConfig,
    conv_in: Convolution,
    time_1: Linear,
    /// A 1 x 1 convolution, because its epilogue can add a bias per image before SiLU.
    time_2: Convolution,
    added_1: Linear,
    /// Its bias includes that of `time_2`.
    added_2: Linear,
    down: Vec<Vec<Stage>>,
    mid: Stage,
    after_mid: Resnet,
    up: Vec<Vec<Stage>>,
    norm_out: GroupNorm,
    conv_out: Convolution,
}

/// A residual block, then a transformer, then down- or upsampling.
#[derive(Debug)]
struct Stage {
    resnet: Resnet,
    transformer: Option<Transformer>,
    resample: Option<Convolution>,
}

/// The embeddings of prompts and sizes, which all steps share.
#[derive(Debug, Clone)]
pub struct Condition {
    batch_size: usize,
    /// Added to the timestep embedding: [batch_size, width].
    added: Tensor,
    /// Keys and values of the prompt for every layer of every transformer, in the order of the forward pass.
    prompts: Vec<Vec<Tensor>>,
}

impl Condition {
    /// Images that are processed together.
    pub fn batch_size(&self) -> usize {
        self.batch_size
    }
}

impl Unet {
    /// Loads a UNet in the layout of diffusers.
    ///
    /// # Errors
    /// As [`Loader::matrix`].
    pub async fn load(loader: &Loader, config: &UnetConfig) -> Result<Self> {
        let loader = loader.network(expected::unet(config)).inputs(Inputs::F16);
        let (mut down, mut up) = (Vec::new(), Vec::new());
        for (index, level) in config.levels.iter().enumerate() {
            let part = loader.pp("down_blocks").pp(index);
            let resample = ("downsamplers.0.conv", ConvMode::Stride2);
            down.push(Stage::load_level(&part, level, &level.down, resample, config).await?);
        }
        for (index, level) in config.levels.iter().rev().enumerate() {
            let part = loader.pp("up_blocks").pp(index);
            let resample = ("upsamplers.0.conv", ConvMode::Upsample2);
            up.push(Stage::load_level(&part, level, &level.up, resample, config).await?);
        }
        let (mid, time, added) = (loader.pp("mid_block"), loader.pp("time_embedding"), loader.pp("add_embedding"));
        Ok(Self {
            conv_in: loader.convolution("conv_in", ConvMode::Same).await?,
            time_1: Linear::load(&time, "linear_1").await?,
            time_2: time.convolution("linear_2", ConvMode::Same).await?,
            added_1: Linear::load(&added, "linear_1").await?,
            added_2: Linear::load_with_bias_of(&added, "linear_2", &time.pp("linear_2")).await?,
            down,
            mid: Stage::load(&mid, 0, &config.levels[config.levels.len() - 1], config.mid_depth, config).await?,
            after_mid: load_resnet(&mid, 1, config).await?,
            up,
            norm_out: loader.group_norm("conv_norm_out", config.norm_num_groups, config.norm_eps).await?,
            conv_out: loader.convolution("conv_out", ConvMode::Same).await?,
            config: config.clone(),
        })
    }

    /// Bytes of the largest feature map for `images` latents of `height` x `width`: on the up path before the first
    /// residual block of a level, or inside a transformer.
    pub(in crate::diffusion) fn largest_map(config: &UnetConfig, images: usize, height: usize, width: usize) -> u64 {
        let (mut height, mut width) = (height as u64, width as u64);
        let mut largest = 0;
        for (index, level) in config.levels.iter().enumerate() {
            let below = config.levels.get(index + 1).unwrap_or(level).channels;
            let attends = level.down.iter().chain(&level.up).any(Option::is_some);
            let inner = if attends { 4 * level.channels } else { 0 };
            let channels = (below + level.channels).max(inner) as u64;
            largest = largest.max(height * width * images as u64 * channels * 4);
            (height, width) = (height.div_ceil(2), width.div_ceil(2));
        }
        largest
    }

    /// The sizes that it was loaded with.
    pub fn config(&self) -> &UnetConfig {
        &self.config
    }

    /// Computes the condition of a batch from `context` [batch * positions, cross_attention_dim], `pooled` [batch,
    /// pooled_width] and `time_ids` `[batch]`: original height and width, the crop's top and left, target height and
    /// width, in pixels.
    ///
    /// # Errors
    /// [`Error::WrongShape`]; [`Error::InvalidArgument`] if the rows of `context` are not a multiple of the batch.
    pub fn condition(
        &self,
        recorder: &mut Recorder,
        context: &Tensor,
        pooled: &Tensor,
        time_ids: &[[f32; 6]],
    ) -> Result<Condition> {
        let batch_size = time_ids.len();
        pooled.expect("pooled text", &[batch_size, self.config.pooled_width()])?;
        context.expect("context", &[context.rows(), self.config.cross_attention_dim])?;
        if batch_size == 0 || !context.rows().is_multiple_of(batch_size) {
            return Err(Error::InvalidArgument(format!(
                "{} text states for {batch_size} prompts, expected the same number for each",
                context.rows()
            )));
        }
        let width = self.config.addition_time_embed_dim;
        let embedded: Vec<f32> =
            time_ids.iter().flatten().flat_map(|id| self.sinusoidal_embedding(*id, width)).collect();
        let sizes = Tensor::upload(recorder, &[batch_size, 6 * width], &embedded, "sizes")?;
        let one = |pixels: &Tensor| FeatureMap { height: 1, width: 1, values: pixels.clone() };
        let both = ops::concatenate(recorder, &one(pooled), &one(&sizes))?;
        let silu = Epilogue { activation: Some(Activation::Silu), ..self.added_1.epilogue() };
        let h = ops::linear(recorder, &both.values, &self.added_1.weight, silu)?;
        let added = self.added_2.forward(recorder, &h)?;
        let down = self.down.iter().flatten().map(|stage| &stage.transformer);
        let up = self.up.iter().flatten().map(|stage| &stage.transformer);
        let transformers = down.chain([&self.mid.transformer]).chain(up).flatten();
        let prompts =
            transformers.map(|transformer| transformer.condition(recorder, context)).collect::<Result<_>>()?;
        Ok(Condition { batch_size, added, prompts })
    }

    /// Predicts the noise (or the schedule's other target) of `latents`, scaled by the step's `input_scale`, at a
    /// timestep: [batch * height * width, in_channels padded to a multiple of 4]. The result has `out_channels`.
    ///
    /// # Errors
    /// [`Error::WrongShape`] if the latents are not those of the condition's batch.
    pub fn forward(
        &self,
        recorder: &mut Recorder,
        latents: &FeatureMap,
        timestep: f32,
        condition: &Condition,
    ) -> Result<FeatureMap> {
        if latents.images() != condition.batch_size || latents.channels() != padded_channels(self.config.in_channels) {
            return Err(Error::WrongShape {
                name: "latents".to_owned(),
                found: latents.values.shape().to_vec(),
                expected: format!("{} images of {} channels", condition.batch_size, self.config.in_channels),
            });
        }
        let time = &self.embed_time(recorder, timestep, condition)?;
        let mut prompts = condition.prompts.iter();
        let mut x = ops::convolution(recorder, latents, &self.conv_in, ConvEpilogue::default())?;
        let mut skips = vec![x.clone()];
        for stage in self.down.iter().flatten() {
            x = stage.forward(recorder, &x, time, &mut prompts)?;
            skips.push(x.clone());
            if let Some(halve) = &stage.resample {
                x = ops::convolution(recorder, &x, halve, ConvEpilogue::default())?;
                skips.push(x.clone());
            }
        }
        x = self.mid.forward(recorder, &x, time, &mut prompts)?;
        x = self.after_mid.forward(recorder, &x, Some(time), &mut NormStats::Local)?;
        for stage in self.up.iter().flatten() {
            // Down and up blocks have the same number of stages, so there is a skip for each.
            let Some(skip) = skips.pop() else { break };
            let both = ops::concatenate(recorder, &x, &skip)?;
            drop(skip);
            x = stage.forward(recorder, &both, time, &mut prompts)?;
            if let (Some(double), Some(skip)) = (&stage.resample, skips.last()) {
                let size = (skip.height, skip.width);
                x = ops::convolution_upsampled(recorder, &x, double, size, ConvEpilogue::default())?;
            }
        }
        let x = NormStats::Local.norm(recorder, &x, &self.norm_out, true)?;
        ops::convolution(recorder, &x, &self.conv_out, ConvEpilogue::default())
    }

    /// SiLU(W2 SiLU(W1 sinusoidal(t) + b1) + b2 + added), for each image.
    fn embed_time(&self, recorder: &mut Recorder, timestep: f32, condition: &Condition) -> Result<Tensor> {
        let (batch_size, channels) = (condition.batch_size, self.config.levels[0].channels);
        let embedding = self.sinusoidal_embedding(timestep, channels).repeat(batch_size);
        let embedding = Tensor::upload(recorder, &[batch_size, channels], &embedding, "timestep")?;
        let silu = Epilogue { activation: Some(Activation::Silu), ..self.time_1.epilogue() };
        let pixels = ops::linear(recorder, &embedding, &self.time_1.weight, silu)?;
        let added =
            ConvEpilogue { bias: Some(&condition.added), activation: Some(Activation::Silu), ..Default::default() };
        let h = FeatureMap { height: 1, width: 1, values: pixels };
        Ok(ops::convolution(recorder, &h, &self.time_2, added)?.values)
    }

    /// The sinusoidal embedding of a number: cosines and sines of geometrically spaced frequencies (Vaswani et al.,
    /// 2017), in f32 as in the reference.
    fn sinusoidal_embedding(&self, number: f32, width: usize) -> Vec<f32> {
        let half = width / 2;
        let step = -(10000f32.ln()) / (half as f32 - self.config.freq_shift);
        let angles: Vec<f32> = (0..half).map(|index| number * (index as f32 * step).exp()).collect();
        let cosines = angles.iter().map(|angle| angle.cos());
        let sines = angles.iter().map(|angle| angle.sin());
        if self.config.flip_sin_to_cos { cosines.chain(sines).collect() } else { sines.chain(cosines).collect() }
    }
}

/// Keys and values of the prompts for the transformers that follow.
type Prompts<'a> = std::slice::Iter<'a, Vec<Tensor>>;

async fn load_resnet(loader: &Loader, index: usize, config: &UnetConfig) -> Result<Resnet> {
    Resnet::load(&loader.pp("resnets").pp(index), config.norm_num_groups, config.norm_eps).await
}

impl Stage {
    async fn load(
        loader: &Loader,
        index: usize,
        level: &UnetLevel,
        depth: Option<usize>,
        config: &UnetConfig,
    ) -> Result<Self> {
        let transformer = match depth {
            None => None,
            Some(depth) => {
                let config = TransformerConfig { heads: level.heads, depth, groups: config.norm_num_groups };
                Some(Transformer::load(&loader.pp("attentions").pp(index), &config).await?)
            }
        };
        Ok(Self { resnet: load_resnet(loader, index, config).await?, transformer, resample: None })
    }

    /// The stages of a level. `depths` are those of the transformers; the last stage resamples if the level does.
    async fn load_level(
        loader: &Loader,
        level: &UnetLevel,
        depths: &[Option<usize>],
        (resample, mode): (&str, ConvMode),
        config: &UnetConfig,
    ) -> Result<Vec<Self>> {
        let mut stages = Vec::new();
        for (index, depth) in depths.iter().enumerate() {
            stages.push(Self::load(loader, index, level, *depth, config).await?);
        }
        if let Some(last) = stages.last_mut()
            && loader.contains(&format!("{resample}.weight"))
        {
            last.resample = Some(loader.convolution(resample, mode).await?);
        }
        Ok(stages)
    }

    fn forward(
        &self,
        recorder: &mut Recorder,
        x: &FeatureMap,
        time: &Tensor,
        prompts: &mut Prompts<'_>,
    ) -> Result<FeatureMap> {
        let x = self.resnet.forward(recorder, x, Some(time), &mut NormStats::Local)?;
        if let Some(transformer) = &self.transformer {
            transformer.forward(recorder, &x, prompts.next().map_or(&[], Vec::as_slice))?;
        }
        Ok(x)
    }
}
