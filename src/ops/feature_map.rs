//! Operations on feature maps: patches (whose product with a weight matrix is a convolution with stride = size),
//! depthwise 7 x 7 convolution, bilinear resampling, concatenation of channels.

use bytemuck::{Pod, Zeroable};

use super::{cost, element_grid};
use crate::gpu::{Access, Kernel, Recorder, Source, grid_1d, wgsl};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// A feature map [height, width, channels], channels last; or those of several images, one after the other.
#[derive(Debug, Clone)]
pub struct FeatureMap {
    /// Rows of pixels.
    pub height: usize,
    /// Pixels in a row.
    pub width: usize,
    /// [images * height * width, channels].
    pub values: Tensor,
}

impl FeatureMap {
    /// Channels of each pixel.
    pub fn channels(&self) -> usize {
        self.values.columns()
    }

    /// The number of images.
    pub fn images(&self) -> usize {
        self.values.rows() / (self.height * self.width).max(1)
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct PatchParams {
    rows: u32,
    width_out: u32,
    channels: u32,
    size: u32,
    stride_channel: u32,
    stride_row: u32,
    stride_column: u32,
    first_row: u32,
}

/// Patches of an invocation of `patches`.
const PATCHES: usize = 16;
const READ_WRITE: &[Access] = &[Access::Read, Access::Write];

pub(crate) fn patches_kernel() -> Kernel {
    Kernel::new("patches", [wgsl!("conv/patches.wgsl")], READ_WRITE)
}

/// How kernels take the channels of maps: by fours, or one by one.
pub(super) fn channels_reader(vec4: bool) -> Source {
    if vec4 { wgsl!("common/channels_vec4.wgsl") } else { wgsl!("common/channels_scalar.wgsl") }
}

/// `whole`: the width is a multiple of eight.
pub(crate) fn depthwise_kernel(vec4: bool, whole: bool) -> Kernel {
    Kernel {
        overrides: vec![("WHOLE", u32::from(whole))],
        ..Kernel::new(
            "depthwise",
            [channels_reader(vec4), wgsl!("conv/depthwise.wgsl")],
            &[Access::Read, Access::Read, Access::Read, Access::Write],
        )
    }
}

pub(crate) fn concatenate_kernel() -> Kernel {
    Kernel::new("concatenate", [wgsl!("conv/concatenate.wgsl")], &[Access::Read, Access::Read, Access::Write])
}

pub(crate) fn resize_kernel() -> Kernel {
    Kernel::new("resize", [wgsl!("conv/resize.wgsl")], READ_WRITE)
}

/// Patches `first ..` of a image, `count` of them, as rows [count, channels * size * size] in the order of torch's
/// flattened convolution weights. `planar`: channels come first ([channels, height, width]) or last.
///
/// # Errors
/// [Device errors](crate::gpu); [`Error::WrongShape`](crate::Error::WrongShape) if shapes do not fit.
pub fn patches(
    recorder: &mut Recorder,
    x: &Tensor,
    (height, width, channels): (usize, usize, usize),
    planar: bool,
    size: usize,
    first: usize,
    count: usize,
) -> Result<Tensor> {
    let (rows_out, width_out) = (height / size, width / size);
    if x.len() != height * width * channels || first + count > rows_out * width_out {
        return Err(Error::WrongShape {
            name: "patches".to_owned(),
            found: x.shape().to_vec(),
            expected: format!("{height} x {width} pixels of {channels} channels"),
        });
    }
    let length = channels * size * size;
    let y = Tensor::temporary(recorder.gpu(), &[count, length], "patches")?;
    let (stride_channel, stride_row, stride_column) =
        if planar { (height * width, width, 1) } else { (1, width * channels, channels) };
    let params = PatchParams {
        rows: count as u32,
        width_out: width_out as u32,
        channels: channels as u32,
        size: size as u32,
        stride_channel: stride_channel as u32,
        stride_row: stride_row as u32,
        stride_column: stride_column as u32,
        first_row: first as u32,
    };
    let [y_groups, z_groups, _] = grid_1d(count.div_ceil(PATCHES));
    recorder.dispatch(
        &patches_kernel(),
        &[x.binding(), y.binding()],
        &params,
        [length.div_ceil(64) as u32, y_groups, z_groups],
        cost(2 * count * length, 0),
    )?;
    Ok(y)
}

/// Depthwise 7 x 7 convolution, padding 3: weight [49, channels], bias `[channels]`.
///
/// # Errors
/// [Device errors](crate::gpu); [`Error::WrongShape`](crate::Error::WrongShape) if shapes do not fit.
pub fn depthwise(recorder: &mut Recorder, x: &FeatureMap, weight: &Tensor, bias: &Tensor) -> Result<FeatureMap> {
    let channels = x.channels();
    weight.expect("depthwise weight", &[49, channels])?;
    bias.expect("depthwise bias", &[channels])?;
    let y = Tensor::temporary(recorder.gpu(), x.values.shape(), "depthwise")?;
    let elements = x.values.len();
    let vec4 = channels.is_multiple_of(4);
    let counted = if vec4 { channels / 4 } else { channels };
    recorder.dispatch(
        &depthwise_kernel(vec4, x.width.is_multiple_of(8)),
        &[x.values.binding(), weight.binding(), bias.binding(), y.binding()],
        &[x.height as u32, x.width as u32, counted as u32, 0],
        element_grid(x.height * x.width.div_ceil(8) * counted),
        cost(2 * elements, 98 * elements),
    )?;
    Ok(FeatureMap { height: x.height, width: x.width, values: y })
}

/// Bilinear resampling to another size, as `torch.nn.functional.interpolate(align_corners=False)`.
///
/// # Errors
/// [Device errors](crate::gpu); [`Error::WrongShape`](crate::Error::WrongShape) if shapes do not fit.
pub fn resize(recorder: &mut Recorder, x: &FeatureMap, height: usize, width: usize) -> Result<FeatureMap> {
    let channels = x.channels();
    let y = Tensor::temporary(recorder.gpu(), &[height * width, channels], "resize")?;
    recorder.dispatch(
        &resize_kernel(),
        &[x.values.binding(), y.binding()],
        &[x.height as u32, x.width as u32, height as u32, width as u32, channels as u32, 0, 0, 0],
        element_grid(y.len()),
        cost(x.values.len() + y.len(), 8 * y.len()),
    )?;
    Ok(FeatureMap { height, width, values: y })
}

/// Concatenates the channels of two maps of one size; both have a multiple of 4.
///
/// # Errors
/// [Device errors](crate::gpu); [`Error::WrongShape`](crate::Error::WrongShape) if shapes do not fit.
pub fn concatenate(recorder: &mut Recorder, first: &FeatureMap, second: &FeatureMap) -> Result<FeatureMap> {
    let (rows, channels) = (first.values.rows(), [first.channels(), second.channels()]);
    if (first.height, first.width, rows) != (second.height, second.width, second.values.rows())
        || channels.iter().any(|channels| !channels.is_multiple_of(4))
    {
        return Err(Error::WrongShape {
            name: "concatenate".to_owned(),
            found: second.values.shape().to_vec(),
            expected: format!("a map as large as {:?}, both with a multiple of 4 channels", first.values.shape()),
        });
    }
    let all = channels[0] + channels[1];
    let y = Tensor::temporary(recorder.gpu(), &[rows, all], "concatenation")?;
    recorder.dispatch(
        &concatenate_kernel(),
        &[first.values.binding(), second.values.binding(), y.binding()],
        &[rows as u32, (channels[0] / 4) as u32, (channels[1] / 4) as u32, 0],
        [(all / 4).div_ceil(32) as u32, rows.div_ceil(128) as u32, 1],
        cost(2 * y.len(), 0),
    )?;
    Ok(FeatureMap { height: first.height, width: first.width, values: y })
}
