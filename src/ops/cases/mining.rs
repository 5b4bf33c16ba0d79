//! Cases of patch info mining.

use super::convolution::bilinear;
use super::{Case, F32, Random, read};
use crate::Result;
use crate::gpu::Gpu;
use crate::io::LocalFuture;
use crate::ops::{self, FeatureMap, MiningMap};
use crate::tensor::Tensor;

/// A high-resolution map of four stages.
#[derive(Debug, Clone, Copy)]
pub struct Map {
    /// Texel rows of the first stage.
    pub height: usize,
    /// Texels in a row of the first stage.
    pub width: usize,
    /// Channels of each stage.
    pub channels: [usize; 4],
    /// How many times smaller each stage is than the first: freq_factors of height and width.
    pub ratios: [usize; 4],
    /// 1, or 2 for cells of 2 x 2 texels.
    pub pool: usize,
}

const EPS: f32 = 1e-5;

impl Map {
    fn all_channels(&self) -> usize {
        self.channels.iter().sum()
    }

    fn cells(&self) -> (usize, usize) {
        (self.height / self.pool, self.width / self.pool)
    }

    fn stages(&self, random: &mut Random) -> [Vec<f32>; 4] {
        std::array::from_fn(|stage| {
            let texels = self.height * self.width / self.ratios[stage].pow(2);
            // Stages differ in size, and no mean is zero.
            let mut values = random.values(texels * self.channels[stage], 1.0 + stage as f64);
            values.iter_mut().for_each(|value| *value += 0.5);
            values
        })
    }

    fn upload(&self, gpu: &Gpu, stages: &[Vec<f32>; 4]) -> Result<MiningMap> {
        let stage = |i: usize| -> Result<FeatureMap> {
            let (height, width) = (self.height / self.ratios[i], self.width / self.ratios[i]);
            let pixels = Tensor::new(gpu, &[height * width, self.channels[i]], &stages[i], "stage")?;
            Ok(FeatureMap { height, width, values: pixels })
        };
        Ok(MiningMap { stages: [stage(0)?, stage(1)?, stage(2)?, stage(3)?], pool: self.pool })
    }

    /// The map as the model's definition makes it: every stage upsampled to the first, all concatenated, then averaged.
    /// Channels of each cell, row by row.
    fn literal(&self, stages: &[Vec<f32>; 4]) -> Vec<Vec<f64>> {
        let full: Vec<Vec<f64>> = (0..4)
            .map(|i| {
                let values: Vec<f64> = stages[i].iter().map(|x| f64::from(*x)).collect();
                let size = (self.height / self.ratios[i], self.width / self.ratios[i]);
                bilinear(&values, size, self.channels[i], (self.height, self.width))
            })
            .collect();
        let (cells_high, cells_wide) = self.cells();
        let mut cells = Vec::new();
        for row in 0..cells_high {
            for column in 0..cells_wide {
                let mut cell = Vec::new();
                for (values, channels) in full.iter().zip(self.channels) {
                    for c in 0..channels {
                        let mut sum = 0.0;
                        for y in row * self.pool..(row + 1) * self.pool {
                            for x in column * self.pool..(column + 1) * self.pool {
                                sum += values[(y * self.width + x) * channels + c];
                            }
                        }
                        cell.push(sum / (self.pool * self.pool) as f64);
                    }
                }
                cells.push(cell);
            }
        }
        cells
    }
}

/// Mean and 1 / sqrt(variance + eps).
fn moments(cell: &[f64]) -> (f64, f64) {
    let mean = cell.iter().sum::<f64>() / cell.len() as f64;
    let variance = cell.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / cell.len() as f64;
    (mean, 1.0 / (variance + f64::from(EPS)).sqrt())
}

/// The statistics of every cell: [`ops::mining_stats`].
#[derive(Debug, Clone, Copy)]
pub struct MiningStats {
    /// The map.
    pub map: Map,
}

impl Case for MiningStats {
    fn bound(&self) -> f64 {
        F32
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalFuture<'a, Result<Vec<f32>>> {
        Box::pin(async move {
            let map = self.map.upload(gpu, &self.map.stages(&mut Random::new(&self.name())))?;
            let mut recorder = gpu.record();
            let stats = ops::mining_stats(&mut recorder, &map, EPS)?;
            read(recorder, &[&stats]).await
        })
    }

    fn reference(&self) -> Vec<f32> {
        let cells = self.map.literal(&self.map.stages(&mut Random::new(&self.name())));
        cells.iter().map(|cell| moments(cell)).flat_map(|(mean, scale)| [mean as f32, scale as f32]).collect()
    }
}

/// The attended windows of a tile: `ops::mining_stats` and `ops::mining`.
#[derive(Debug, Clone, Copy)]
pub struct Mining {
    /// The map.
    pub map: Map,
    /// Tokens along a side of the tile.
    pub side: usize,
    /// Cells along a side of a token's window.
    pub window: usize,
    /// The tile's upper left cell.
    pub origin: (usize, usize),
}

impl Mining {
    fn inputs(&self) -> ([Vec<f32>; 4], Vec<f32>) {
        let mut random = Random::new(&self.name());
        let stages = self.map.stages(&mut random);
        let channels = self.map.all_channels();
        // Scores of standard deviation 4 / sqrt(3).
        let u = random.values(self.side * self.side * channels, 4.0 / (channels as f64).sqrt());
        (stages, u)
    }
}

impl Case for Mining {
    /// Differences of weighted texels from their mean: the statistics' rounding is part of the result.
    fn bound(&self) -> f64 {
        10.0 * F32
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalFuture<'a, Result<Vec<f32>>> {
        Box::pin(async move {
            let (stages, u) = self.inputs();
            let map = self.map.upload(gpu, &stages)?;
            let u = Tensor::new(gpu, &[self.side * self.side, self.map.all_channels()], &u, "u")?;
            let mut recorder = gpu.record();
            let stats = ops::mining_stats(&mut recorder, &map, EPS)?;
            let y = ops::mining(&mut recorder, &u, &map, &stats, self.window, self.origin, None)?;
            let weights = Tensor::zeros(gpu, &[map.height() * map.width()], "weights")?;
            let again = ops::mining(&mut recorder, &u, &map, &stats, self.window, self.origin, Some(&weights))?;
            read(recorder, &[&y, &again, &weights]).await
        })
    }

    fn reference(&self) -> Vec<f32> {
        let (stages, u) = self.inputs();
        let channels = self.map.all_channels();
        let normed: Vec<Vec<f64>> = self
            .map
            .literal(&stages)
            .into_iter()
            .map(|cell| {
                let (mean, scale) = moments(&cell);
                cell.into_iter().map(|x| (x - mean) * scale).collect()
            })
            .collect();
        let wide = self.map.cells().1;
        let mut y = Vec::new();
        let mut all_weights = vec![0.0; normed.len()];
        for token in 0..self.side * self.side {
            let row = self.origin.0 + token / self.side * self.window;
            let column = self.origin.1 + token % self.side * self.window;
            let query = &u[token * channels..][..channels];
            let window: Vec<&Vec<f64>> = (0..self.window * self.window)
                .map(|m| &normed[(row + m / self.window) * wide + column + m % self.window])
                .collect();
            let scores: Vec<f64> =
                window.iter().map(|cell| query.iter().zip(*cell).map(|(u, f)| f64::from(*u) * f).sum()).collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
            let total: f64 = weights.iter().sum();
            for (m, weight) in weights.iter().enumerate() {
                all_weights[(row + m / self.window) * wide + column + m % self.window] = (weight / total) as f32;
            }
            y.extend((0..channels).map(|c| {
                (weights.iter().zip(&window).map(|(weight, cell)| weight * cell[c]).sum::<f64>() / total) as f32
            }));
        }
        [y.clone(), y, all_weights].concat()
    }
}
