//! Convolutions with 1 x 1 and 3 x 3 kernels, as implicit GEMMs.

use super::matmul::{ConvParams, ImplicitGemm};
use super::{Activation, FeatureMap};
use crate::gpu::Recorder;
use crate::tensor::{Inputs, Matrix, Tensor};
use crate::{Error, Result};

/// Stride, padding and upsampling of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ConvMode {
    /// Stride 1, padded with zeros on all sides: the result has the map's size.
    #[default]
    Same,
    /// Stride 2, padded by one on all sides: a 3 x 3 kernel's result has half the size, rounded up.
    Stride2,
    /// Stride 2, padded at the right and the bottom only: half the size, rounded down.
    Stride2PadEnd,
    /// Stride 1 on the map upsampled by 2 x 2 (nearest neighbour), which is never stored. See [`convolution_upsampled`]
    /// for sides that are one less.
    Upsample2,
}

/// A convolution with a bias.
#[derive(Debug)]
pub struct Convolution {
    /// [out, side^2 * in]: taps in reading order, channels last.
    pub weight: Matrix,
    /// `[out]`
    pub bias: Tensor,
    /// Channels that go in, a multiple of 4.
    pub channels: usize,
    /// Side of the kernel: 1 or 3.
    pub side: usize,
    /// Stride, padding and upsampling.
    pub mode: ConvMode,
}

/// What happens to a convolution's sum before it is stored: `activation(sum + bias) + residual`.
#[derive(Debug, Clone, Copy, Default)]
pub struct ConvEpilogue<'a> {
    /// Replaces the layer's bias, one for each image: [images, out].
    pub bias: Option<&'a Tensor>,
    /// EpilogueFlags to the sum.
    pub activation: Option<Activation>,
    /// Added last; as large as the result.
    pub residual: Option<&'a FeatureMap>,
    /// The map fits f16, even if the weight's inputs in general do not ([`Matrix::inputs`]).
    pub narrow_inputs: bool,
}

impl Convolution {
    /// Height and width of the result for a map's.
    pub fn size(&self, height: usize, width: usize) -> (usize, usize) {
        match self.mode {
            ConvMode::Same => (height, width),
            ConvMode::Stride2 => (height.div_ceil(2), width.div_ceil(2)),
            ConvMode::Stride2PadEnd => (height / 2, width / 2),
            ConvMode::Upsample2 => (2 * height, 2 * width),
        }
    }
}

/// The convolution of a map, or of several, one after the other.
///
/// # Errors
/// [Device errors](crate::gpu); [`Error::WrongShape`](crate::Error::WrongShape) if shapes do not fit.
pub fn convolution(
    recorder: &mut Recorder,
    x: &FeatureMap,
    layer: &Convolution,
    epilogue: ConvEpilogue<'_>,
) -> Result<FeatureMap> {
    convolution_to(recorder, x, layer, layer.size(x.height, x.width), epilogue)
}

/// The convolution of a map that is upsampled to this size first: twice its own, or one less.
///
/// # Errors
/// [Device errors](crate::gpu); [`Error::WrongShape`](crate::Error::WrongShape) if shapes do not fit.
pub fn convolution_upsampled(
    recorder: &mut Recorder,
    x: &FeatureMap,
    layer: &Convolution,
    (height, width): (usize, usize),
    epilogue: ConvEpilogue<'_>,
) -> Result<FeatureMap> {
    let fits = |upsampled: usize, side: usize| upsampled.div_ceil(2) == side;
    if layer.mode != ConvMode::Upsample2 || !fits(height, x.height) || !fits(width, x.width) {
        return Err(Error::WrongShape {
            name: "convolution of an upsampled map".to_owned(),
            found: vec![x.height, x.width],
            expected: format!("half of {height} x {width}"),
        });
    }
    convolution_to(recorder, x, layer, (height, width), epilogue)
}

fn convolution_to(
    recorder: &mut Recorder,
    x: &FeatureMap,
    layer: &Convolution,
    (height, width): (usize, usize),
    epilogue: ConvEpilogue<'_>,
) -> Result<FeatureMap> {
    let (taps, out) = (layer.side * layer.side, layer.weight.rows());
    let images = x.images();
    let fits = matches!(layer.side, 1 | 3)
        && x.channels() == layer.channels
        && x.channels().is_multiple_of(4)
        && images * x.height * x.width == x.values.rows()
        && layer.weight.columns() == taps * x.channels()
        // Within the range in which the kernel divides exactly.
        && layer.weight.columns() < 1 << 22
        && images * height * width > 0;
    if !fits {
        return Err(Error::WrongShape {
            name: "convolution".to_owned(),
            found: vec![images, x.height, x.width, x.channels()],
            expected: format!(
                "maps with {} channels, a multiple of 4, for a kernel of {} columns",
                layer.channels,
                layer.weight.columns()
            ),
        });
    }
    match epilogue.bias {
        Some(bias) => bias.expect("bias", &[images, out])?,
        None => layer.bias.expect("bias", &[out])?,
    }
    let y = Tensor::temporary(recorder.gpu(), &[images * height * width, out], "convolution")?;
    if let Some(residual) = epilogue.residual {
        residual.values.expect("residual", y.shape())?;
    }
    let strided = matches!(layer.mode, ConvMode::Stride2 | ConvMode::Stride2PadEnd);
    let upsampled = layer.mode == ConvMode::Upsample2;
    let channels4 = x.channels() / 4;
    let convolution = ConvParams {
        height: x.height as u32,
        width: x.width as u32,
        pixels_per_image: (height * width) as u32,
        width_out: width as u32,
        channels4: channels4 as u32,
        inverse_channels4: 1.0 / channels4 as f32,
        taps: taps as u32,
        stride: if strided { 2 } else { 1 },
        padding: if layer.mode == ConvMode::Stride2PadEnd { 0 } else { layer.side as u32 / 2 },
        upsample_shift: u32::from(upsampled),
        height_limit: if upsampled { height } else { x.height } as u32,
        width_limit: if upsampled { width } else { x.width } as u32,
        first_row: 0,
        bias_stride: if epilogue.bias.is_some() { out as u32 } else { 0 },
    };
    ImplicitGemm {
        x: &x.values,
        weight: &layer.weight,
        bias: Some(epilogue.bias.unwrap_or(&layer.bias)),
        activation: epilogue.activation,
        residual: epilogue.residual.map(|residual| &residual.values),
        y: &y,
        inputs: match layer.weight.inputs() {
            // Matrix units take runs of eight channels of a tap. Only the layers that read latents have fewer.
            _ if !channels4.is_multiple_of(2) => Inputs::Wide,
            Inputs::Wide if epilogue.narrow_inputs => Inputs::Any,
            inputs => inputs,
        },
        convolution,
    }
    .record(recorder)?;
    Ok(FeatureMap { height, width, values: y })
}
