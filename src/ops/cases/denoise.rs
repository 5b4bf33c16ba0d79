//! Cases of the sampler's step.

use super::{Case, F32, Random, read};
use crate::Result;
use crate::gpu::Gpu;
use crate::io::LocalFuture;
use crate::ops;
use crate::tensor::Tensor;

/// A step over latents: `ops::denoise`.
#[derive(Debug, Clone, Copy)]
pub struct Denoise {
    /// Elements of the latents.
    pub count: usize,
    /// Copies of the model's next input.
    pub copies: usize,
    /// Its numbers.
    pub step: ops::Denoise,
    /// New noise is given.
    pub noise: bool,
}

impl Denoise {
    /// Output, noise, sample, previous.
    fn inputs(&self) -> [Vec<f32>; 4] {
        let mut random = Random::new(&self.name());
        let outputs = if self.step.guidance_scale.is_some() { 2 } else { 1 };
        [outputs, 1, 1, 1].map(|times| random.values(times * self.count, 1.0))
    }
}

impl Case for Denoise {
    fn bound(&self) -> f64 {
        F32
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalFuture<'a, Result<Vec<f32>>> {
        Box::pin(async move {
            let inputs = self.inputs();
            let tensor = |index: usize| {
                let values: &Vec<f32> = &inputs[index];
                Tensor::new(gpu, &[values.len()], values, "input")
            };
            let [output, noise, sample, previous] = [tensor(0)?, tensor(1)?, tensor(2)?, tensor(3)?];
            let input = Tensor::zeros(gpu, &[self.copies * self.count], "next input")?;
            let mut recorder = gpu.record();
            let noise = self.noise.then_some(&noise);
            ops::denoise(&mut recorder, &self.step, &output, noise, [&sample, &previous, &input])?;
            read(recorder, &[&sample, &previous, &input]).await
        })
    }

    fn reference(&self) -> Vec<f32> {
        let [output, noise, sample, previous] = self.inputs();
        let ops::Denoise { guidance_scale, denoised: [of_x, of_o], limit, next, input_scale } = self.step;
        let [a, b, c, d, e] = next.map(f64::from);
        let (mut samples, mut denoised) = (Vec::new(), Vec::new());
        for i in 0..self.count {
            let first = f64::from(output[i]);
            let o = match guidance_scale {
                Some(scale) => first + f64::from(scale) * (f64::from(output[self.count + i]) - first),
                None => first,
            };
            let x = f64::from(sample[i]);
            let x0 = (f64::from(of_x) * x + f64::from(of_o) * o).clamp(-f64::from(limit), f64::from(limit));
            let sum = a * x + b * o + c * x0 + d * f64::from(previous[i]) + e * f64::from(noise[i]);
            samples.push(sum as f32);
            denoised.push(x0 as f32);
        }
        let input: Vec<f32> = samples.iter().map(|x| (f64::from(input_scale) * f64::from(*x)) as f32).collect();
        [samples, denoised, input.repeat(self.copies)].concat()
    }
}
