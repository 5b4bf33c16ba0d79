//! Cases of inpainting's step.

use super::{Case, F32, Random, read};
use crate::Result;
use crate::gpu::Gpu;
use crate::io::LocalFuture;
use crate::ops;
use crate::tensor::Tensor;

/// `ops::inpaint`: restores the known image outside of a mask.
#[derive(Debug, Clone, Copy)]
pub struct Inpaint {
    /// Pixels of the latents.
    pub pixels: usize,
    /// Their channels.
    pub channels: usize,
    /// Copies of the model's next input.
    pub copies: usize,
    /// The coefficients of the step.
    pub step: ops::Inpaint,
}

impl Inpaint {
    /// Known image, noise, sample, and a mask of values from 0 to 1, both included.
    fn inputs(&self) -> [Vec<f32>; 4] {
        let mut random = Random::new(&self.name());
        let count = self.pixels * self.channels;
        let [known, noise, sample] = [(); 3].map(|()| random.values(count, 1.0));
        let mask = random.values(self.pixels, 1.0).into_iter().map(|value| value.clamp(0.0, 1.0)).collect();
        [known, noise, sample, mask]
    }
}

impl Case for Inpaint {
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
            let [known, noise, sample, mask] = [tensor(0)?, tensor(1)?, tensor(2)?, tensor(3)?];
            let input = Tensor::zeros(gpu, &[self.copies * self.pixels * self.channels], "next input")?;
            let mut recorder = gpu.record();
            ops::inpaint(&mut recorder, &self.step, [&known, &noise, &mask], [&sample, &input])?;
            read(recorder, &[&sample, &input]).await
        })
    }

    fn reference(&self) -> Vec<f32> {
        let [known, noise, sample, mask] = self.inputs();
        let ops::Inpaint { kept: [of_known, of_noise], input_scale } = self.step;
        let next = |i: usize| {
            let kept = f64::from(of_known) * f64::from(known[i]) + f64::from(of_noise) * f64::from(noise[i]);
            let fresh = f64::from(mask[i / self.channels]);
            (fresh * f64::from(sample[i]) + (1.0 - fresh) * kept) as f32
        };
        let samples: Vec<f32> = (0..self.pixels * self.channels).map(next).collect();
        let input: Vec<f32> = samples.iter().map(|x| (f64::from(input_scale) * f64::from(*x)) as f32).collect();
        [samples, input.repeat(self.copies)].concat()
    }
}
