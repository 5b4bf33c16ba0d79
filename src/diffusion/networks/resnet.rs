//! The residual block of UNet and autoencoder.

use super::statistics::NormStats;
use crate::Result;
use crate::gpu::Recorder;
use crate::loader::Loader;
use crate::nn::linear::Linear;
use crate::ops::{self, ConvEpilogue, ConvMode, Convolution, FeatureMap, GroupNorm};
use crate::tensor::Tensor;

#[derive(Debug)]
pub(super) struct Resnet {
    norm_1: GroupNorm,
    convolution_1: Convolution,
    /// Projects the timestep embedding to the first convolution's bias. The convolution's own bias is included.
    time: Option<Linear>,
    norm_2: GroupNorm,
    convolution_2: Convolution,
    /// 1 x 1, if the number of channels changes.
    shortcut: Option<Convolution>,
}

impl Resnet {
    pub(super) async fn load(loader: &Loader, groups: usize, eps: f32) -> Result<Self> {
        Ok(Self {
            norm_1: loader.group_norm("norm1", groups, eps).await?,
            convolution_1: loader.convolution("conv1", ConvMode::Same).await?,
            time: if loader.contains("time_emb_proj.weight") {
                Some(Linear::load_with_bias_of(loader, "time_emb_proj", &loader.pp("conv1")).await?)
            } else {
                None
            },
            norm_2: loader.group_norm("norm2", groups, eps).await?,
            convolution_2: loader.convolution("conv2", ConvMode::Same).await?,
            shortcut: if loader.contains("conv_shortcut.weight") {
                Some(loader.convolution("conv_shortcut", ConvMode::Same).await?)
            } else {
                None
            },
        })
    }

    /// Input channels.
    pub(super) fn channels(&self) -> usize {
        self.norm_1.weight.len()
    }

    /// Output channels.
    pub(super) fn channels_out(&self) -> usize {
        self.norm_2.weight.len()
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
            (Some(layer), Some(time)) => Some(layer.forward(recorder, time)?),
            _ => None,
        };
        let h = statistics.norm(recorder, x, &self.norm_1, true)?;
        let narrow_inputs = statistics.fits_f16(x, &self.norm_1);
        let timed = ConvEpilogue { bias: bias.as_ref(), narrow_inputs, ..Default::default() };
        let h = ops::convolution(recorder, &h, &self.convolution_1, timed)?;
        let narrow_inputs = statistics.fits_f16(&h, &self.norm_2);
        let h = statistics.norm(recorder, &h, &self.norm_2, true)?;
        let shortcut = match &self.shortcut {
            Some(layer) => ops::convolution(recorder, x, layer, ConvEpilogue::default())?,
            None => x.clone(),
        };
        let added = ConvEpilogue { residual: Some(&shortcut), narrow_inputs, ..Default::default() };
        ops::convolution(recorder, &h, &self.convolution_2, added)
    }
}
