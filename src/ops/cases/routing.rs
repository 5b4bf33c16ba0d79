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
            let routing = ops::route(&mut recorder, &logits, self.top_k, ops::Shares::default())?;
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
            let routing = ops::route(&mut recorder, &logits, self.top_k, ops::Shares::default())?;
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

/// Shares of all experts, with a factor: [`ops::Shares`] without normalisation. The result is shares [tokens, top_k].
#[derive(Debug, Clone, Copy)]
pub struct RouteOfAll(pub Route);

impl Case for RouteOfAll {
    fn bound(&self) -> f64 {
        F32
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalFuture<'a, Result<Vec<f32>>> {
        Box::pin(async move {
            let Route { tokens, experts, top_k } = self.0;
            let logits = Tensor::new(gpu, &[tokens, experts], &self.0.inputs(), "logits")?;
            let mut recorder = gpu.record();
            let shares = ops::Shares { normalised: false, scale: 2.5 };
            let routing = ops::route(&mut recorder, &logits, top_k, shares)?;
            read(recorder, &[routing.chosen().0]).await
        })
    }

    fn reference(&self) -> Vec<f32> {
        let row = |logits: &[f32]| {
            let mut weights: Vec<f64> = logits.iter().map(|x| f64::from(*x).exp()).collect();
            let total: f64 = weights.iter().sum();
            weights.sort_by(|a, b| b.total_cmp(a));
            weights.truncate(self.0.top_k);
            weights.into_iter().map(|weight| (2.5 * weight / total) as f32).collect::<Vec<_>>()
        };
        self.0.inputs().chunks_exact(self.0.experts).flat_map(row).collect()
    }
}

/// A shared expert's result onto the residual: [`ops::gated_add`].
#[derive(Debug, Clone, Copy)]
pub struct GatedAdd {
    /// Tokens.
    pub tokens: usize,
    /// Elements of a token.
    pub width: usize,
}

impl GatedAdd {
    /// Results, gates, residual.
    fn inputs(&self) -> [Vec<f32>; 3] {
        let mut random = Random::new(&self.name());
        let count = self.tokens * self.width;
        [random.values(count, 1.0), random.values(self.tokens, 3.0), random.values(count, 1.0)]
    }
}

impl Case for GatedAdd {
    fn bound(&self) -> f64 {
        F32
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalFuture<'a, Result<Vec<f32>>> {
        Box::pin(async move {
            let [x, gates, residual] = self.inputs();
            let x = Tensor::new(gpu, &[self.tokens, self.width], &x, "x")?;
            let gates = Tensor::new(gpu, &[self.tokens, 1], &gates, "gates")?;
            let y = Tensor::new(gpu, &[self.tokens, self.width], &residual, "y")?;
            let mut recorder = gpu.record();
            ops::gated_add(&mut recorder, &x, &gates, &y)?;
            read(recorder, &[&y]).await
        })
    }

    fn reference(&self) -> Vec<f32> {
        let [x, gates, residual] = self.inputs();
        let gated = |(index, (x, y)): (usize, (&f32, &f32))| {
            let gate = 1.0 / (1.0 + (-f64::from(gates[index / self.width])).exp());
            (f64::from(*y) + gate * f64::from(*x)) as f32
        };
        x.iter().zip(&residual).enumerate().map(gated).collect()
    }
}

/// The soft cap of logits: `ops::softcap`.
#[derive(Debug, Clone, Copy)]
pub struct Softcap {
    /// Elements.
    pub count: usize,
    /// The cap.
    pub cap: f32,
}

impl Softcap {
    /// Most of them near the cap, a few far above it.
    fn inputs(&self) -> Vec<f32> {
        let mut values = Random::new(&self.name()).values(self.count, 2.0 * f64::from(self.cap));
        values.iter_mut().step_by(7).for_each(|x| *x *= 1e3);
        values
    }
}

impl Case for Softcap {
    fn bound(&self) -> f64 {
        F32
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalFuture<'a, Result<Vec<f32>>> {
        Box::pin(async move {
            let x = Tensor::new(gpu, &[1, self.count], &self.inputs(), "x")?;
            let mut recorder = gpu.record();
            ops::softcap(&mut recorder, &x, self.cap)?;
            read(recorder, &[&x]).await
        })
    }

    fn reference(&self) -> Vec<f32> {
        let cap = f64::from(self.cap);
        self.inputs().iter().map(|x| (cap * (f64::from(*x) / cap).tanh()) as f32).collect()
    }
}
