//! Cases of expert routing.

use super::{Case, F32, Random, read};
use crate::Result;
use crate::gpu::Gpu;
use crate::io::LocalFuture;
use crate::ops;
use crate::tensor::Tensor;

/// Softmax over all experts, the best of each token by sorting, renormalised: (expert, share) best first. The first of
/// equals wins.
fn chosen(logits: &[f32], top_k: usize) -> Vec<(usize, f64)> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> = logits.iter().map(|x| (f64::from(*x) - f64::from(largest)).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut ranked: Vec<(usize, f64)> = weights.iter().map(|weight| weight / total).enumerate().collect();
    ranked.sort_by(|a, b| logits[b.0].total_cmp(&logits[a.0]));
    ranked.truncate(top_k);
    let total_of_best: f64 = ranked.iter().map(|(_, share)| share).sum();
    ranked.iter_mut().for_each(|(_, share)| *share /= total_of_best);
    ranked
}

/// Logits with many ties.
fn logits(random: &mut Random, count: usize) -> Vec<f32> {
    (0..count).map(|_| random.below(33) as f32 / 4.0 - 4.0).collect()
}

/// The choice of experts: [`ops::route`]. The result is shares and expert numbers [tokens, top_k], then for each expert
/// the number of its slots and the slots.
#[derive(Debug, Clone, Copy)]
pub struct Route {
    /// Tokens.
    pub tokens: usize,
    /// Experts.
    pub experts: usize,
    /// Experts of each token.
    pub top_k: usize,
}

impl Route {
    fn inputs(&self) -> Vec<f32> {
        logits(&mut Random::new(&self.name()), self.tokens * self.experts)
    }
}

impl Case for Route {
    /// A wrong number among at most a few thousand slots is far above it.
    fn bound(&self) -> f64 {
        F32
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalFuture<'a, Result<Vec<f32>>> {
        Box::pin(async move {
            let logits = Tensor::new(gpu, &[self.tokens, self.experts], &self.inputs(), "logits")?;
            let mut recorder = gpu.record();
            let routing = ops::route(&mut recorder, &logits, self.top_k)?;
            let (shares, choices) = routing.chosen();
            let shares = shares.read_back(&mut recorder);
            let choices = choices.read_back(&mut recorder);
            let lists = routing.routes(0, true).lists.read_back(&mut recorder);
            recorder.submit()?;
            let mut values = shares.values::<f32>().await?;
            values.extend(choices.values::<u32>().await?.into_iter().map(|expert| expert as f32));
            for list in lists.values::<u32>().await?.chunks_exact(1 + self.tokens) {
                let count = (list[0] as usize).min(self.tokens);
                values.push(list[0] as f32);
                values.extend(list[1..=count].iter().map(|slot| *slot as f32));
            }
            Ok(values)
        })
    }

    fn reference(&self) -> Vec<f32> {
        let logits = self.inputs();
        let chosen: Vec<_> = logits.chunks_exact(self.experts).flat_map(|row| chosen(row, self.top_k)).collect();
        let mut values: Vec<f32> = chosen.iter().map(|(_, share)| *share as f32).collect();
        values.extend(chosen.iter().map(|(expert, _)| *expert as f32));
        for expert in 0..self.experts {
            let slots: Vec<f32> =
                (0..chosen.len()).filter(|slot| chosen[*slot].0 == expert).map(|s| s as f32).collect();
            values.push(slots.len() as f32);
            values.extend(slots);
        }
        values
    }
}

/// The experts' answers onto the residual: [`ops::combine`].
#[derive(Debug, Clone, Copy)]
pub struct Combine {
    /// Tokens.
    pub tokens: usize,
    /// Experts.
    pub experts: usize,
    /// Experts of each token.
    pub top_k: usize,
    /// Elements of an answer.
    pub width: usize,
}

impl Combine {
    /// Logits, answers, residual.
    fn inputs(&self) -> [Vec<f32>; 3] {
        let mut random = Random::new(&self.name());
        let logits = logits(&mut random, self.tokens * self.experts);
        [
            logits,
            random.values(self.tokens * self.top_k * self.width, 1.0),
            random.values(self.tokens * self.width, 1.0),
        ]
    }
}

impl Case for Combine {
    fn bound(&self) -> f64 {
        F32
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalFuture<'a, Result<Vec<f32>>> {
        Box::pin(async move {
            let [logits, answers, residual] = self.inputs();
            let logits = Tensor::new(gpu, &[self.tokens, self.experts], &logits, "logits")?;
            let answers = Tensor::new(gpu, &[self.tokens * self.top_k, self.width], &answers, "answers")?;
            let y = Tensor::new(gpu, &[self.tokens, self.width], &residual, "y")?;
            let mut recorder = gpu.record();
            let routing = ops::route(&mut recorder, &logits, self.top_k)?;
            ops::combine(&mut recorder, &routing, &answers, &y)?;
            read(recorder, &[&y]).await
        })
    }

    fn reference(&self) -> Vec<f32> {
        let [logits, answers, mut y] = self.inputs();
        for (token, logits) in logits.chunks_exact(self.experts).enumerate() {
            for (choice, (_, share)) in chosen(logits, self.top_k).into_iter().enumerate() {
                let answer = &answers[(token * self.top_k + choice) * self.width..][..self.width];
                for (y, answer) in y[token * self.width..].iter_mut().zip(answer) {
                    *y = (f64::from(*y) + share * f64::from(*answer)) as f32;
                }
            }
        }
        y
    }
}
