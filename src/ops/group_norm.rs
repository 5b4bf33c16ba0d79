//! Group normalisation of channels-last feature maps, in three kernels because a group spans the whole map: per-channel
//! sums over blocks of rows, then a scale and an offset per channel, then their application.

use bytemuck::{Pod, Zeroable};

use super::{FeatureMap, cost};
use crate::gpu::{Access, Gpu, Kernel, Recorder, wgsl};
use crate::tensor::{Precision, Tensor};
use crate::{Error, Result};

/// Maximum number of row blocks per map.
const MAX_ROW_BLOCKS: usize = 256;
/// Groups of four channels and row blocks per workgroup of the first kernel.
const FOURS: usize = 32;
const ROW_BLOCKS: usize = 8;
/// Pixels of a workgroup of the last kernel.
const PIXELS: usize = 128;

/// A group normalisation layer.
#[derive(Debug, Clone)]
pub struct GroupNorm {
    /// Gain, `[channels]`.
    pub weight: Tensor,
    /// Offset, `[channels]`.
    pub bias: Tensor,
    /// Groups of neighbouring channels.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f32,
    /// The largest magnitudes of gain and offset.
    pub largest: [f32; 2],
}

impl GroupNorm {
    /// Whether the result fits f16, whatever the map: one of n values is at most sqrt(n) standard deviations from their
    /// mean, so |y| <= |gain| sqrt(n) + |offset|. `pixels`: of the map that the statistics cover. SiLU makes no value
    /// larger.
    pub fn fits_f16(&self, pixels: f64) -> bool {
        let [gain, offset] = self.largest.map(f64::from);
        let values = pixels * (self.weight.len() / self.groups.max(1)) as f64;
        gain * values.sqrt() + offset < f64::from(Precision::F16.largest())
    }
}

/// A part of a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rectangle {
    /// The first row.
    pub top: usize,
    /// The first pixel of each row.
    pub left: usize,
    /// Rows.
    pub height: usize,
    /// Pixels in a row.
    pub width: usize,
}

impl Rectangle {
    /// All of a map.
    pub fn whole(map: &FeatureMap) -> Self {
        Self { top: 0, left: 0, height: map.height, width: map.width }
    }

    fn block_rows(&self) -> usize {
        self.height.div_ceil(MAX_ROW_BLOCKS)
    }

    /// Row blocks that it is cut into.
    pub fn row_blocks(&self) -> usize {
        self.height.div_ceil(self.block_rows())
    }
}

/// Per-channel means and sums of squared deviations, by row block, of one or several maps. A norm's statistics are
/// computed from them.
#[derive(Debug, Clone)]
pub struct ChannelMoments {
    sums: Tensor,
    images: usize,
    row_blocks: usize,
    channels: usize,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SumParams {
    width: u32,
    pixels: u32,
    channels4: u32,
    top: u32,
    left: u32,
    rows: u32,
    columns: u32,
    block_rows: u32,
    row_blocks: u32,
    first_row_block: u32,
    all_row_blocks: u32,
    padding: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct FactorParams {
    channels: u32,
    group_channels: u32,
    row_blocks: u32,
    eps: f32,
}

/// All three.
pub(crate) fn kernels() -> [Kernel; 3] {
    [sums_kernel(), factors_kernel(), apply_kernel()]
}

fn sums_kernel() -> Kernel {
    Kernel::new("group_norm_sums", [wgsl!("norm/group_norm_sums.wgsl")], &[Access::Read, Access::Write])
}

fn factors_kernel() -> Kernel {
    let bindings = &[Access::Read, Access::Read, Access::Read, Access::Write];
    Kernel::new(
        "group_norm_factors",
        [wgsl!("common/reduce_workgroup.wgsl"), wgsl!("norm/group_norm_factors.wgsl")],
        bindings,
    )
}

fn apply_kernel() -> Kernel {
    Kernel::new("group_norm", [wgsl!("norm/group_norm.wgsl")], &[Access::Read, Access::Read, Access::Write])
}

impl ChannelMoments {
    /// Storage for `row_blocks` row blocks of each of `images` images.
    ///
    /// # Errors
    /// [Device errors](crate::gpu); [`Error::WrongShape`](crate::Error::WrongShape) if shapes do not fit.
    pub fn new(gpu: &Gpu, images: usize, row_blocks: usize, channels: usize) -> Result<Self> {
        let sums = Tensor::temporary(gpu, &[images * row_blocks, 4 + 2 * channels], "channel sums")?;
        Ok(Self { sums, images, row_blocks, channels })
    }

    /// Records the sums of a map's rectangle as those from `first_row_block` on.
    ///
    /// # Errors
    /// [Device errors](crate::gpu); [`Error::WrongShape`](crate::Error::WrongShape) if shapes do not fit.
    pub fn add(
        &self,
        recorder: &mut Recorder,
        x: &FeatureMap,
        rectangle: Rectangle,
        first_row_block: usize,
    ) -> Result<()> {
        let Rectangle { top, left, height, width } = rectangle;
        let row_blocks = rectangle.row_blocks();
        let fits = x.channels() == self.channels
            && self.channels.is_multiple_of(4)
            && x.images() == self.images
            && height * width > 0
            && top + height <= x.height
            && left + width <= x.width
            && first_row_block + row_blocks <= self.row_blocks;
        if !fits {
            return Err(Error::WrongShape {
                name: "group norm".to_owned(),
                found: vec![x.images(), x.height, x.width, x.channels()],
                expected: format!(
                    "{} maps of {} channels, a multiple of 4, around {rectangle:?}",
                    self.images, self.channels
                ),
            });
        }
        let params = SumParams {
            width: x.width as u32,
            pixels: (x.height * x.width) as u32,
            channels4: (self.channels / 4) as u32,
            top: top as u32,
            left: left as u32,
            rows: height as u32,
            columns: width as u32,
            block_rows: rectangle.block_rows() as u32,
            row_blocks: row_blocks as u32,
            first_row_block: first_row_block as u32,
            all_row_blocks: self.row_blocks as u32,
            padding: 0,
        };
        let grid = [(self.channels / 4).div_ceil(FOURS), row_blocks.div_ceil(ROW_BLOCKS), self.images];
        let elements = self.images * height * width * self.channels;
        recorder.dispatch(
            &sums_kernel(),
            &[x.values.binding(), self.sums.binding()],
            &params,
            grid.map(|size| size as u32),
            cost(elements, 4 * elements),
        )
    }
}

impl GroupNorm {
    /// What each channel of each image is multiplied with and what is added to it, [images, 2 channels], given all
    /// sums.
    ///
    /// # Errors
    /// [Device errors](crate::gpu); [`Error::WrongShape`](crate::Error::WrongShape) if shapes do not fit.
    pub fn factors(&self, recorder: &mut Recorder, sums: &ChannelMoments) -> Result<Tensor> {
        let channels = sums.channels;
        self.weight.expect("group norm weight", &[channels])?;
        self.bias.expect("group norm bias", &[channels])?;
        if self.groups == 0 || !channels.is_multiple_of(self.groups) {
            return Err(Error::WrongShape {
                name: "group norm".to_owned(),
                found: vec![channels],
                expected: format!("channels that make {} groups", self.groups),
            });
        }
        let factors = Tensor::temporary(recorder.gpu(), &[sums.images, 2 * channels], "group norm factors")?;
        recorder.dispatch(
            &factors_kernel(),
            &[sums.sums.binding(), self.weight.binding(), self.bias.binding(), factors.binding()],
            &FactorParams {
                channels: channels as u32,
                group_channels: (channels / self.groups) as u32,
                row_blocks: sums.row_blocks as u32,
                eps: self.eps,
            },
            [self.groups as u32, sums.images as u32, 1],
            cost(sums.sums.len() + factors.len(), 4 * sums.sums.len()),
        )?;
        Ok(factors)
    }
}

/// y = factor x + offset for each channel, followed by SiLU if `silu`.
///
/// # Errors
/// [Device errors](crate::gpu); [`Error::WrongShape`](crate::Error::WrongShape) if shapes do not fit.
pub fn scale_channels(recorder: &mut Recorder, x: &FeatureMap, factors: &Tensor, silu: bool) -> Result<FeatureMap> {
    let (pixels, channels) = (x.height * x.width, x.channels());
    factors.expect("group norm factors", &[x.images(), 2 * channels])?;
    let y = Tensor::temporary(recorder.gpu(), x.values.shape(), "group norm")?;
    let grid = [(channels / 4).div_ceil(FOURS), pixels.div_ceil(PIXELS), x.images()];
    recorder.dispatch(
        &apply_kernel(),
        &[x.values.binding(), factors.binding(), y.binding()],
        &[pixels as u32, (channels / 4) as u32, u32::from(silu), 0],
        grid.map(|size| size as u32),
        cost(2 * y.len(), if silu { 6 } else { 2 } * y.len()),
    )?;
    Ok(FeatureMap { height: x.height, width: x.width, values: y })
}

/// Group normalisation of each image, followed by SiLU if `silu`.
///
/// # Errors
/// [Device errors](crate::gpu); [`Error::WrongShape`](crate::Error::WrongShape) if shapes do not fit.
pub fn group_norm(recorder: &mut Recorder, x: &FeatureMap, layer: &GroupNorm, silu: bool) -> Result<FeatureMap> {
    let whole = Rectangle::whole(x);
    let sums = ChannelMoments::new(recorder.gpu(), x.images(), whole.row_blocks(), x.channels())?;
    sums.add(recorder, x, whole, 0)?;
    let factors = layer.factors(recorder, &sums)?;
    scale_channels(recorder, x, &factors, silu)
}
