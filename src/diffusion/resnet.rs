//! The residual block of UNet and autoencoder.

use super::statistics::NormStats;
use crate::Result;
use crate::gpu::Recorder;
use crate::loader::Loader;
use crate::ops::{self, ConvEpilogue, ConvMode, Convolution, Epilogue, FeatureMap, GroupNorm};
use crate::tensor::{Matrix, Tensor};

/// The sizes and constants of a block.
#[derive(Debug, Clone, Copy)]
pub(super) struct ResnetConfig {
    /// Input channels.
    pub channels: usize,
    /// Output channels.
    pub out: usize,
    pub groups: usize,
    pub eps: f32,
    /// Width of the timestep embedding, if there is one.
    pub time: Option<usize>,
}

#[derive(Debug)]
pub(super) struct Resnet {
    norm_1: GroupNorm,
    convolution_1: Convolution,
    time: Option<TimeBias>,
    norm_2: GroupNorm,
    convolution_2: Convolution,
    /// 1 x 1, if the number of channels changes.
    shortcut: Option<Convolution>,
}

/// Projects the timestep embedding to the first convolution's bias. The convolution's own bias is included.
#[derive(Debug)]
struct TimeBias {
    weight: Matrix,
    bias: Tensor,
}

impl Resnet {
    pub(super) async fn load(loader: &Loader, config: &ResnetConfig) -> Result<Self> {
        let ResnetConfig { channels, out, groups, eps, time } = *config;
        let time = match time {
            None => None,
            Some(width) => {
                let mut bias = loader.values("time_emb_proj.bias", &[out]).await?;
                let own = loader.values("conv1.bias", &[out]).await?;
                bias.iter_mut().zip(&own).for_each(|(bias, own)| *bias += own);
                Some(TimeBias {
                    weight: loader.matrix("time_emb_proj.weight", out, width).await?,
                    bias: loader.upload("time_emb_proj.bias", &[out], &bias).await?,
                })
            }
        };
        Ok(Self {
            norm_1: loader.group_norm("norm1", channels, groups, eps).await?,
            convolution_1: loader.convolution("conv1", (channels, out), 3, ConvMode::Same).await?,
            time,
            norm_2: loader.group_norm("norm2", out, groups, eps).await?,
            convolution_2: loader.convolution("conv2", (out, out), 3, ConvMode::Same).await?,
            shortcut: if channels == out {
                None
            } else {
                Some(loader.convolution("conv_shortcut", (channels, out), 1, ConvMode::Same).await?)
            },
        })
    }

    /// shortcut(x) + conv2(SiLU(GN2(conv1(SiLU(GN1 x)) + Wt t))); `time` [images, width] is after SiLU.
    pub(super) fn forward(
        &self,
        recorder: &mut Recorder,
        x: &FeatureMap,
        time: Option<&Tensor>,
        statistics: &mut NormStats<'_>,
    ) -> Result<FeatureMap> {
        let bias = match (&self.time, time) {
            (Some(layer), Some(time)) => {
                let own = Epilogue { bias: Some(&layer.bias), ..Default::default() };
                Some(ops::linear(recorder, time, &layer.weight, own)?)
            }
            _ => None,
        };
        let h = statistics.norm(recorder, x, &self.norm_1, true)?;
        let timed = ConvEpilogue { bias: bias.as_ref(), ..Default::default() };
        let h = ops::convolution(recorder, &h, &self.convolution_1, timed)?;
        let h = statistics.norm(recorder, &h, &self.norm_2, true)?;
        let shortcut = match &self.shortcut {
            Some(layer) => ops::convolution(recorder, x, layer, ConvEpilogue::default())?,
            None => x.clone(),
        };
        let added = ConvEpilogue { residual: Some(&shortcut), ..Default::default() };
        ops::convolution(recorder, &h, &self.convolution_2, added)
    }
}
