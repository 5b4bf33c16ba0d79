//! Cases of a UNet's operations: convolution, group norm, concatenation, softmax.

use super::linear::activate;
use super::{Case, F32, Random, read, stored};
use crate::Result;
use crate::gpu::Gpu;
use crate::io::LocalFuture;
use crate::ops::{self, Activation, ConvEpilogue, ConvMode, FeatureMap};
use crate::tensor::{Matrix, Precision, Tensor};

/// A convolution: `ops::convolution`, or `ops::convolution_upsampled` to sides one less than twice the map's where
/// `odd`.
#[derive(Debug, Clone, Copy)]
pub struct Convolution {
    /// Images, one after the other.
    pub images: usize,
    /// Rows of pixels.
    pub height: usize,
    /// Pixels in a row.
    pub width: usize,
    /// Channels that go in, a multiple of 4.
    pub channels: usize,
    /// Channels that come out.
    pub out: usize,
    /// Side of the kernel.
    pub side: usize,
    /// Where it is put.
    pub mode: ConvMode,
    /// A doubled map is cut off by one.
    pub odd: bool,
    /// How the weight is stored.
    pub precision: Precision,
    /// The activation.
    pub activation: Option<Activation>,
    /// Each image has a bias of its own.
    pub biases: bool,
    /// A map is added last.
    pub residual: bool,
}

impl Default for Convolution {
    fn default() -> Self {
        Self {
            images: 1,
            height: 1,
            width: 1,
            channels: 4,
            out: 1,
            side: 3,
            mode: ConvMode::Same,
            odd: false,
            precision: Precision::F32,
            activation: None,
            biases: false,
            residual: false,
        }
    }
}

struct Inputs {
    x: Vec<f32>,
    weight: Vec<f32>,
    biases: Vec<f32>,
    residual: Vec<f32>,
}

impl Convolution {
    fn columns(&self) -> usize {
        self.side * self.side * self.channels
    }

    /// Height and width of the result.
    fn size(&self) -> (usize, usize) {
        let Self { height, width, .. } = *self;
        match self.mode {
            ConvMode::Same => (height, width),
            ConvMode::Stride2 => (height.div_ceil(2), width.div_ceil(2)),
            ConvMode::Stride2PadEnd => (height / 2, width / 2),
            ConvMode::Upsample2 => (2 * height - usize::from(self.odd), 2 * width - usize::from(self.odd)),
        }
    }

    fn pixels(&self) -> usize {
        let (height, width) = self.size();
        self.images * height * width
    }

    fn inputs(&self) -> Inputs {
        let mut random = Random::new(&self.name());
        Inputs {
            x: random.values(self.images * self.height * self.width * self.channels, 1.0),
            weight: random.values(self.out * self.columns(), 3.0 / (self.columns() as f64).sqrt()),
            biases: random.values(self.images * self.out, 1.0),
            residual: random.values(self.pixels() * self.out, 1.0),
        }
    }
}

impl Case for Convolution {
    fn bound(&self) -> f64 {
        F32
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalFuture<'a, Result<Vec<f32>>> {
        Box::pin(async move {
            let Self { images, height, width, channels, out, side, mode, .. } = *self;
            let inputs = self.inputs();
            let pixels = Tensor::new(gpu, &[images * height * width, channels], &inputs.x, "x")?;
            let layer = ops::Convolution {
                weight: Matrix::new(gpu, self.precision, self.columns(), &inputs.weight, "weight")?,
                bias: Tensor::new(gpu, &[out], &inputs.biases[..out], "bias")?,
                channels,
                side,
                mode,
            };
            let biases = Tensor::new(gpu, &[images, out], &inputs.biases, "biases")?;
            let size = self.size();
            let residual = FeatureMap {
                height: size.0,
                width: size.1,
                values: Tensor::new(gpu, &[self.pixels(), out], &inputs.residual, "residual")?,
            };
            let epilogue = ConvEpilogue {
                bias: self.biases.then_some(&biases),
                activation: self.activation,
                residual: self.residual.then_some(&residual),
                narrow_inputs: false,
            };
            let mut recorder = gpu.record();
            let x = FeatureMap { height, width, values: pixels };
            let y = if mode == ConvMode::Upsample2 {
                ops::convolution_upsampled(&mut recorder, &x, &layer, size, epilogue)?
            } else {
                ops::convolution(&mut recorder, &x, &layer, epilogue)?
            };
            read(recorder, &[&y.values]).await
        })
    }

    /// Padded, moved by the stride, multiplied and summed tap by tap.
    fn reference(&self) -> Vec<f32> {
        let Inputs { x, weight, biases, residual } = self.inputs();
        let weight = stored(self.precision, self.columns(), &weight);
        let (height_out, width_out) = self.size();
        let doubled = self.mode == ConvMode::Upsample2;
        let (height, width) = if doubled { (height_out, width_out) } else { (self.height, self.width) };
        let before = if self.mode == ConvMode::Stride2PadEnd { 0 } else { self.side / 2 };
        let halved = matches!(self.mode, ConvMode::Stride2 | ConvMode::Stride2PadEnd);
        let stride = if halved { 2 } else { 1 };
        let shrink = if doubled { 2 } else { 1 };
        let mut y = Vec::with_capacity(residual.len());
        for at in 0..self.pixels() {
            let (image, pixel) = (at / (height_out * width_out), at % (height_out * width_out));
            let (top, left) = (pixel / width_out * stride, pixel % width_out * stride);
            for out in 0..self.out {
                let mut sum = f64::from(biases[if self.biases { image * self.out + out } else { out }]);
                for tap in 0..self.side * self.side {
                    let (row, column) = (top + tap / self.side, left + tap % self.side);
                    let inside = row >= before && row < height + before && column >= before && column < width + before;
                    if !inside {
                        continue;
                    }
                    let (row, column) = ((row - before) / shrink, (column - before) / shrink);
                    let start = ((image * self.height + row) * self.width + column) * self.channels;
                    let kernel = out * self.columns() + tap * self.channels;
                    for channel in 0..self.channels {
                        sum += f64::from(x[start + channel]) * f64::from(weight[kernel + channel]);
                    }
                }
                let mut value = activate(sum, self.activation);
                if self.residual {
                    value += f64::from(residual[y.len()]);
                }
                y.push(value as f32);
            }
        }
        y
    }
}

/// Group normalisation: `ops::group_norm`.
#[derive(Debug, Clone, Copy)]
pub struct GroupNorm {
    /// Images, each with its own mean and variance.
    pub images: usize,
    /// Rows of pixels.
    pub height: usize,
    /// Pixels in a row.
    pub width: usize,
    /// Channels, a multiple of 4.
    pub channels: usize,
    /// Groups of them.
    pub groups: usize,
    /// Followed by SiLU.
    pub silu: bool,
    /// Added to all values.
    pub shift: f32,
}

impl GroupNorm {
    fn inputs(&self) -> [Vec<f32>; 3] {
        let mut random = Random::new(&self.name());
        let mut x = random.values(self.images * self.height * self.width * self.channels, 1.0);
        x.iter_mut().for_each(|value| *value += self.shift);
        [x, random.values(self.channels, 1.0), random.values(self.channels, 1.0)]
    }

    const EPS: f32 = 1e-3;
}

impl Case for GroupNorm {
    /// The shift costs digits of the values themselves, relative to what is left of them: 2^-24 shift each.
    fn bound(&self) -> f64 {
        F32 * (1.0 + f64::from(self.shift).powi(2))
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalFuture<'a, Result<Vec<f32>>> {
        Box::pin(async move {
            let Self { images, height, width, channels, groups, silu, .. } = *self;
            let [x, weight, bias] = self.inputs();
            let pixels = Tensor::new(gpu, &[images * height * width, channels], &x, "x")?;
            let layer = ops::GroupNorm {
                weight: Tensor::new(gpu, &[channels], &weight, "weight")?,
                bias: Tensor::new(gpu, &[channels], &bias, "bias")?,
                groups,
                eps: Self::EPS,
                largest: [f32::MAX; 2],
            };
            let mut recorder = gpu.record();
            let y = ops::group_norm(&mut recorder, &FeatureMap { height, width, values: pixels }, &layer, silu)?;
            read(recorder, &[&y.values]).await
        })
    }

    fn reference(&self) -> Vec<f32> {
        let [x, weight, bias] = self.inputs();
        let (pixels, width) = (self.height * self.width, self.channels / self.groups);
        let mut y = vec![0.0; x.len()];
        for image in 0..self.images {
            for group in 0..self.groups {
                let places: Vec<usize> = (0..pixels * width)
                    .map(|at| (image * pixels + at / width) * self.channels + group * width + at % width)
                    .collect();
                let count = places.len() as f64;
                let mean = places.iter().map(|at| f64::from(x[*at])).sum::<f64>() / count;
                let variance = places.iter().map(|at| (f64::from(x[*at]) - mean).powi(2)).sum::<f64>() / count;
                for at in places {
                    let channel = at % self.channels;
                    let normed = (f64::from(x[at]) - mean) / (variance + f64::from(Self::EPS)).sqrt();
                    let value = normed * f64::from(weight[channel]) + f64::from(bias[channel]);
                    y[at] = activate(value, self.silu.then_some(Activation::Silu)) as f32;
                }
            }
        }
        y
    }
}

/// Concatenation of the channels of two maps: [`ops::concatenate`].
#[derive(Debug, Clone, Copy)]
pub struct Concatenate {
    /// Pixels of each.
    pub pixels: usize,
    /// Channels of both, multiples of 4.
    pub channels: [usize; 2],
}

impl Concatenate {
    fn inputs(&self) -> [Vec<f32>; 2] {
        let mut random = Random::new(&self.name());
        self.channels.map(|channels| random.values(self.pixels * channels, 1.0))
    }
}

impl Case for Concatenate {
    fn bound(&self) -> f64 {
        0.0
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalFuture<'a, Result<Vec<f32>>> {
        Box::pin(async move {
            let inputs = self.inputs();
            let map = |index: usize| -> Result<FeatureMap> {
                let shape = [self.pixels, self.channels[index]];
                Ok(FeatureMap { height: 1, width: self.pixels, values: Tensor::new(gpu, &shape, &inputs[index], "x")? })
            };
            let mut recorder = gpu.record();
            let y = ops::concatenate(&mut recorder, &map(0)?, &map(1)?)?;
            read(recorder, &[&y.values]).await
        })
    }

    fn reference(&self) -> Vec<f32> {
        let [first, second] = self.inputs();
        let rows = first.chunks_exact(self.channels[0]).zip(second.chunks_exact(self.channels[1]));
        rows.flat_map(|(first, second)| [first, second].concat()).collect()
    }
}

/// Softmax of the first values of rows: `ops::softmax`.
#[derive(Debug, Clone, Copy)]
pub struct Softmax {
    /// Rows.
    pub rows: usize,
    /// Values of a row that count.
    pub k: usize,
    /// Length of a row.
    pub stride: usize,
}

impl Softmax {
    const SCALE: f32 = 0.7;

    fn inputs(&self) -> Vec<f32> {
        Random::new(&self.name()).values(self.rows * self.stride, 20.0)
    }
}

impl Case for Softmax {
    fn bound(&self) -> f64 {
        F32
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalFuture<'a, Result<Vec<f32>>> {
        Box::pin(async move {
            let x = Tensor::new(gpu, &[self.rows, self.stride], &self.inputs(), "x")?;
            let mut recorder = gpu.record();
            ops::softmax(&mut recorder, &x, self.k, Self::SCALE)?;
            read(recorder, &[&x]).await
        })
    }

    fn reference(&self) -> Vec<f32> {
        let mut x = self.inputs();
        for row in x.chunks_exact_mut(self.stride) {
            let largest = row[..self.k].iter().copied().fold(f32::MIN, f32::max);
            let shares: Vec<f64> = row[..self.k]
                .iter()
                .map(|value| (f64::from(Self::SCALE) * (f64::from(*value) - f64::from(largest))).exp())
                .collect();
            let sum: f64 = shares.iter().sum();
            row.fill(0.0);
            row.iter_mut().zip(shares).for_each(|(value, share)| *value = (share / sum) as f32);
        }
        x
    }
}
