//! Cases of patches, depthwise convolution and resampling.

use super::{Case, F32, Random, read};
use crate::Result;
use crate::gpu::Gpu;
use crate::io::LocalFuture;
use crate::ops::{self, FeatureMap};
use crate::tensor::Tensor;

/// Patches as rows: [`ops::patches`].
#[derive(Debug, Clone, Copy)]
pub struct Patches {
    /// Rows of pixels.
    pub height: usize,
    /// Pixels in a row.
    pub width: usize,
    /// Channels.
    pub channels: usize,
    /// Side of a patch.
    pub size: usize,
    /// Channels come first.
    pub planar: bool,
    /// The first patch.
    pub first: usize,
    /// Patches.
    pub count: usize,
}

impl Patches {
    fn inputs(&self) -> Vec<f32> {
        Random::new(&self.name()).values(self.height * self.width * self.channels, 1.0)
    }
}

impl Case for Patches {
    fn bound(&self) -> f64 {
        0.0
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalFuture<'a, Result<Vec<f32>>> {
        Box::pin(async move {
            let Self { height, width, channels, size, planar, first, count } = *self;
            let x = Tensor::new(gpu, &[height * width, channels], &self.inputs(), "x")?;
            let mut recorder = gpu.record();
            let y = ops::patches(&mut recorder, &x, (height, width, channels), planar, size, first, count)?;
            read(recorder, &[&y]).await
        })
    }

    fn reference(&self) -> Vec<f32> {
        let x = self.inputs();
        let Self { height, width, channels, size, planar, first, count } = *self;
        let mut y = Vec::new();
        for patch in first..first + count {
            let (top, left) = (patch / (width / size) * size, patch % (width / size) * size);
            for c in 0..channels {
                for row in top..top + size {
                    for column in left..left + size {
                        y.push(if planar {
                            x[(c * height + row) * width + column]
                        } else {
                            x[(row * width + column) * channels + c]
                        });
                    }
                }
            }
        }
        y
    }
}

/// Depthwise 7 x 7 convolution: [`ops::depthwise`].
#[derive(Debug, Clone, Copy)]
pub struct Depthwise {
    /// Rows of pixels.
    pub height: usize,
    /// Pixels in a row.
    pub width: usize,
    /// Channels.
    pub channels: usize,
}

impl Depthwise {
    fn inputs(&self) -> [Vec<f32>; 3] {
        let mut random = Random::new(&self.name());
        let x = random.values(self.height * self.width * self.channels, 1.0);
        [x, random.values(49 * self.channels, 1.0), random.values(self.channels, 1.0)]
    }
}

impl Case for Depthwise {
    fn bound(&self) -> f64 {
        F32
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalFuture<'a, Result<Vec<f32>>> {
        Box::pin(async move {
            let Self { height, width, channels } = *self;
            let [x, weight, bias] = self.inputs();
            let pixels = Tensor::new(gpu, &[height * width, channels], &x, "x")?;
            let weight = Tensor::new(gpu, &[49, channels], &weight, "weight")?;
            let bias = Tensor::new(gpu, &[channels], &bias, "bias")?;
            let mut recorder = gpu.record();
            let y = ops::depthwise(&mut recorder, &FeatureMap { height, width, values: pixels }, &weight, &bias)?;
            read(recorder, &[&y.values]).await
        })
    }

    fn reference(&self) -> Vec<f32> {
        let Self { height, width, channels } = *self;
        let [x, weight, bias] = self.inputs();
        let mut y = Vec::new();
        for row in 0..height as isize {
            for column in 0..width as isize {
                for c in 0..channels {
                    let mut sum = f64::from(bias[c]);
                    for (tap, weight) in weight.chunks_exact(channels).enumerate() {
                        let (from_row, from_column) = (row + tap as isize / 7 - 3, column + tap as isize % 7 - 3);
                        if (0..height as isize).contains(&from_row) && (0..width as isize).contains(&from_column) {
                            let at = (from_row as usize * width + from_column as usize) * channels + c;
                            sum += f64::from(weight[c]) * f64::from(x[at]);
                        }
                    }
                    y.push(sum as f32);
                }
            }
        }
        y
    }
}

/// Bilinear resampling: [`ops::resize`].
#[derive(Debug, Clone, Copy)]
pub struct Resize {
    /// Height and width before.
    pub from: (usize, usize),
    /// Channels.
    pub channels: usize,
    /// Height and width after.
    pub to: (usize, usize),
}

impl Resize {
    fn inputs(&self) -> Vec<f32> {
        Random::new(&self.name()).values(self.from.0 * self.from.1 * self.channels, 1.0)
    }
}

impl Case for Resize {
    /// Weights are differences of coordinates, which are rounded to 2^-24 of their size a few times.
    fn bound(&self) -> f64 {
        F32 + (self.from.0.max(self.from.1) as f64 * 2.0f64.powi(-22)).powi(2)
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalFuture<'a, Result<Vec<f32>>> {
        Box::pin(async move {
            let (height, width) = self.from;
            let pixels = Tensor::new(gpu, &[height * width, self.channels], &self.inputs(), "x")?;
            let mut recorder = gpu.record();
            let y = ops::resize(&mut recorder, &FeatureMap { height, width, values: pixels }, self.to.0, self.to.1)?;
            read(recorder, &[&y.values]).await
        })
    }

    fn reference(&self) -> Vec<f32> {
        bilinear(&self.inputs().iter().map(|x| f64::from(*x)).collect::<Vec<_>>(), self.from, self.channels, self.to)
            .into_iter()
            .map(|y| y as f32)
            .collect()
    }
}

/// torch's bilinear interpolation, corners not aligned, channels last.
pub(super) fn bilinear(
    x: &[f64],
    (height, width): (usize, usize),
    channels: usize,
    (to_height, to_width): (usize, usize),
) -> Vec<f64> {
    // Lower and upper neighbour and the weight of the upper one.
    let taps = |target: usize, from: usize, to: usize| {
        let source = ((target as f64 + 0.5) * from as f64 / to as f64 - 0.5).max(0.0);
        let low = (source.floor() as usize).min(from - 1);
        (low, (low + 1).min(from - 1), source - low as f64)
    };
    let mut y = Vec::with_capacity(to_height * to_width * channels);
    for row in 0..to_height {
        let (y0, y1, wy) = taps(row, height, to_height);
        for column in 0..to_width {
            let (x0, x1, wx) = taps(column, width, to_width);
            for c in 0..channels {
                let at = |row: usize, column: usize| x[(row * width + column) * channels + c];
                let top = (1.0 - wx) * at(y0, x0) + wx * at(y0, x1);
                let bottom = (1.0 - wx) * at(y1, x0) + wx * at(y1, x1);
                y.push((1.0 - wy) * top + wy * bottom);
            }
        }
    }
    y
}
