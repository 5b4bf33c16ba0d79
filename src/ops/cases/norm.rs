//! Cases of the norms.

use super::{Case, F32, Random, read};
use crate::Result;
use crate::gpu::Gpu;
use crate::io::LocalFuture;
use crate::ops;
use crate::tensor::Tensor;

/// RMS or layer norm: `ops::norm`.
#[derive(Debug, Clone, Copy)]
pub struct Norm {
    /// Rows.
    pub rows: usize,
    /// Elements of a row.
    pub k: usize,
    /// Layer norm.
    pub centred: bool,
    /// The gain is stored less one.
    pub unit_offset: bool,
    /// Added to the variance or mean square.
    pub eps: f32,
    /// Mean of the inputs, whose spread is 1.
    pub shift: f32,
}

impl Norm {
    fn inputs(&self) -> [Vec<f32>; 3] {
        let mut random = Random::new(&self.name());
        let mut x = random.values(self.rows * self.k, 1.0);
        x.iter_mut().for_each(|x| *x += self.shift);
        [x, random.values(self.k, 1.0), random.values(self.k, 1.0)]
    }
}

impl Case for Norm {
    /// The mean's own rounding counts for as much as it is larger than the spread.
    fn bound(&self) -> f64 {
        F32 * (1.0 + f64::from(self.shift).powi(2))
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalFuture<'a, Result<Vec<f32>>> {
        Box::pin(self.run_onto(gpu, None))
    }

    fn reference(&self) -> Vec<f32> {
        self.values()
    }
}

impl Norm {
    async fn run_onto(&self, gpu: &Gpu, residual: Option<Vec<f32>>) -> Result<Vec<f32>> {
        let [x, weight, bias] = self.inputs();
        let x = Tensor::new(gpu, &[self.rows, self.k], &x, "x")?;
        let layer = ops::Norm {
            weight: Tensor::new(gpu, &[self.k], &weight, "weight")?,
            bias: if self.centred { Some(Tensor::new(gpu, &[self.k], &bias, "bias")?) } else { None },
            eps: self.eps,
            unit_offset: self.unit_offset,
        };
        let mut recorder = gpu.record();
        let y = match residual {
            None => ops::norm(&mut recorder, &x, &layer)?,
            Some(residual) => {
                let y = Tensor::new(gpu, &[self.rows, self.k], &residual, "y")?;
                ops::norm_add(&mut recorder, &x, &layer, &y)?;
                y
            }
        };
        read(recorder, &[&y]).await
    }

    fn values(&self) -> Vec<f32> {
        let [x, weight, bias] = self.inputs();
        let mut y = Vec::new();
        for row in x.chunks_exact(self.k) {
            let row: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
            let k = self.k as f64;
            let mean = if self.centred { row.iter().sum::<f64>() / k } else { 0.0 };
            let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / k;
            for (i, x) in row.iter().enumerate() {
                let gain = f64::from(weight[i]) + if self.unit_offset { 1.0 } else { 0.0 };
                let offset = if self.centred { f64::from(bias[i]) } else { 0.0 };
                y.push(((x - mean) / (variance + f64::from(self.eps)).sqrt() * gain + offset) as f32);
            }
        }
        y
    }
}

/// The same, added to a residual: `ops::norm_add`.
#[derive(Debug, Clone, Copy)]
pub struct NormAdd(pub Norm);

impl NormAdd {
    fn residual(&self) -> Vec<f32> {
        Random::new(&self.name()).values(self.0.rows * self.0.k, 1.0)
    }
}

impl Case for NormAdd {
    fn bound(&self) -> f64 {
        self.0.bound()
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalFuture<'a, Result<Vec<f32>>> {
        Box::pin(self.0.run_onto(gpu, Some(self.residual())))
    }

    fn reference(&self) -> Vec<f32> {
        self.residual().iter().zip(self.0.values()).map(|(y, value)| y + value).collect()
    }
}
