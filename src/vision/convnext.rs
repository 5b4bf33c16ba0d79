//! The high-resolution tower: the stem and stages of ConvNeXt (Liu et al., 2022), as in timm and OpenCLIP.

use super::slices::Stages;
use crate::gpu::Recorder;
use crate::loader::Loader;
use crate::nn::linear::Linear;
use crate::ops::{self, Activation, Epilogue, FeatureMap, Norm};
use crate::tensor::{Inputs, Tensor};
use crate::weights::config::ConvNextConfig;
use crate::weights::expected;
use crate::{Error, Result};

/// The eps of all norms: timm's default.
const EPS: f32 = 1e-6;
/// The largest intermediate of a block's feed-forward part, in bytes. Larger ones are computed in blocks of pixels.
const MAX_INNER_BYTES: usize = 32 << 20;
/// Blocks are multiples of 64 pixels, so that their offsets are aligned for bindings on every device.
const BLOCK_MULTIPLE: usize = 64;

/// A ConvNeXt without the head.
#[derive(Debug)]
pub struct ConvNext {
    /// 4 x 4 convolution with stride 4: [width, 3 * 16].
    stem: Linear,
    stem_norm: Norm,
    stages: [Stage; 4],
}

/// Blocks at one resolution.
#[derive(Debug)]
pub struct Stage {
    downsample: Option<Downsample>,
    blocks: Vec<Block>,
}

/// Channel layer norm, then a 2 x 2 convolution with stride 2.
#[derive(Debug)]
struct Downsample {
    norm: Norm,
    convolution: Linear,
}

#[derive(Debug)]
struct Block {
    /// [49, width]
    depthwise: Tensor,
    depthwise_bias: Tensor,
    norm: Norm,
    fc1: Linear,
    fc2: Linear,
    /// Layer scale.
    gamma: Tensor,
}

impl ConvNext {
    /// Loads the stem and the stages.
    ///
    /// # Errors
    /// As [`Loader::matrix`].
    pub async fn load(loader: &Loader, config: &ConvNextConfig) -> Result<Self> {
        let loader = loader.network(expected::convnext(config)).inputs(Inputs::F16);
        let mut stages = Vec::new();
        for (stage, depth) in config.depths.into_iter().enumerate() {
            stages.push(Stage::load(&loader.pp("stages").pp(stage), depth).await?);
        }
        Ok(Self {
            stem: Linear::load(&loader, "stem.0").await?,
            stem_norm: loader.layer_norm("stem.1", EPS).await?,
            stages: stages.try_into().map_err(|_| Error::Internal("a ConvNeXt has four stages".to_owned()))?,
        })
    }

    /// Runs the stem: pixels [3, size, size] to the feature map of the first stage, at a stride of 4. `size` is a
    /// multiple of 32.
    ///
    /// # Errors
    /// [`Error::WrongShape`] for another size.
    pub fn stem(&self, recorder: &mut Recorder, pixels: &Tensor, size: usize) -> Result<FeatureMap> {
        if size == 0 || !size.is_multiple_of(32) {
            return Err(Error::WrongShape {
                name: "high-resolution view".to_owned(),
                found: vec![size, size],
                expected: "a side that is a multiple of 32".to_owned(),
            });
        }
        let side = size / 4;
        let patches = ops::patches(recorder, pixels, (size, size, 3), true, 4, 0, side * side)?;
        let pixels = self.stem.forward(recorder, &patches)?;
        let pixels = ops::norm(recorder, &pixels, &self.stem_norm)?;
        Ok(FeatureMap { height: side, width: side, values: pixels })
    }

    /// The four stages, at strides of 4, 8, 16 and 32. Each takes the raw output of the one before.
    pub fn stages(&self) -> &[Stage; 4] {
        &self.stages
    }
}

impl Stage {
    async fn load(loader: &Loader, depth: usize) -> Result<Self> {
        let downsample = if loader.contains("downsample.1.weight") {
            Some(Downsample {
                norm: loader.layer_norm("downsample.0", EPS).await?,
                convolution: Linear::load(loader, "downsample.1").await?,
            })
        } else {
            None
        };
        let mut blocks = Vec::new();
        for block in 0..depth {
            blocks.push(Block::load(&loader.pp("blocks").pp(block)).await?);
        }
        Ok(Self { downsample, blocks })
    }

    /// Runs the stage. The first stage works in place.
    ///
    /// # Errors
    /// [`Error::WrongShape`] for another number of channels.
    pub(super) async fn forward(
        &self,
        recorder: &mut Recorder,
        x: &FeatureMap,
        stages: &mut Stages<'_>,
    ) -> Result<FeatureMap> {
        let x = match &self.downsample {
            Some(downsample) => downsample.forward(recorder, x)?,
            None => x.clone(),
        };
        for block in &self.blocks {
            block.forward(recorder, &x, stages).await?;
        }
        Ok(x)
    }
}

impl Downsample {
    fn forward(&self, recorder: &mut Recorder, x: &FeatureMap) -> Result<FeatureMap> {
        let (height, width) = (x.height / 2, x.width / 2);
        let normed = ops::norm(recorder, &x.values, &self.norm)?;
        let size = (x.height, x.width, x.channels());
        let patches = ops::patches(recorder, &normed, size, false, 2, 0, height * width)?;
        Ok(FeatureMap { height, width, values: self.convolution.forward(recorder, &patches)? })
    }
}

impl Block {
    async fn load(loader: &Loader) -> Result<Self> {
        let weight = loader.values("conv_dw.weight").await?;
        let width = weight.len() / 49;
        // Channels last, like the feature maps.
        let depthwise: Vec<f32> = (0..49 * width).map(|index| weight[(index % width) * 49 + index / width]).collect();
        Ok(Self {
            depthwise: loader.upload("conv_dw.weight", &[49, width], &depthwise).await?,
            depthwise_bias: loader.tensor("conv_dw.bias").await?,
            norm: loader.layer_norm("norm", EPS).await?,
            fc1: Linear::load(loader, "mlp.fc1").await?,
            fc2: Linear::load(loader, "mlp.fc2").await?,
            gamma: loader.tensor("gamma").await?,
        })
    }

    /// x += gamma * fc2(GELU(fc1(LN(depthwise(x)))))
    async fn forward(&self, recorder: &mut Recorder, x: &FeatureMap, stages: &mut Stages<'_>) -> Result<()> {
        let convolved = ops::depthwise(recorder, x, &self.depthwise, &self.depthwise_bias)?;
        let normed = ops::norm(recorder, &convolved.values, &self.norm)?;
        let expand = Epilogue { activation: Some(Activation::GeluErf), ..self.fc1.epilogue() };
        let contract = Epilogue { gamma: Some(&self.gamma), ..self.fc2.epilogue() };
        let pixels = x.values.rows();
        let block = (MAX_INNER_BYTES / (self.fc1.weight.rows() * 4) / BLOCK_MULTIPLE).max(1) * BLOCK_MULTIPLE;
        for first in (0..pixels).step_by(block) {
            let normed = normed.slice_rows(first..(first + block).min(pixels));
            let inner = ops::linear(recorder, &normed, &self.fc1.weight, expand)?;
            ops::linear_add(recorder, &inner, &self.fc2.weight, contract, &x.values, first)?;
            stages.part(recorder).await?;
        }
        Ok(())
    }
}
