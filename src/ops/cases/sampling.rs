//! Cases of token sampling.

use super::{Case, Random, read};
use crate::Result;
use crate::gpu::Gpu;
use crate::io::LocalFuture;
use crate::ops::{self, Sampling};
use crate::tensor::Tensor;

/// The chosen tokens as numbers.
async fn tokens(recorder: crate::gpu::Recorder, chosen: &Tensor) -> Result<Vec<f32>> {
    Ok(read(recorder, &[chosen]).await?.into_iter().map(|token| token.to_bits() as f32).collect())
}

/// Greedy choice: [`ops::sample`], over logits whose largest value occurs several times. The first must win.
#[derive(Debug, Clone, Copy)]
pub struct Argmax {
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Logits to choose from.
    pub rows: usize,
    /// All rows at once.
    pub together: bool,
}

impl Argmax {
    fn inputs(&self) -> Vec<Vec<f32>> {
        let mut random = Random::new(&self.name());
        (0..self.rows)
            .map(|row| {
                // All below zero in some rows, and one row with nothing but ties.
                let base = if row % 2 == 0 { -40.0 } else { 0.0 };
                let steps = if row == 2 { 1 } else { 64 };
                let mut logits: Vec<f32> = (0..self.vocab).map(|_| base + random.below(steps) as f32 / 8.0).collect();
                for _ in 0..3 {
                    let at = random.below(self.vocab);
                    logits[at] = base + 8.0;
                }
                match row {
                    3 => logits[random.below(self.vocab)] = f32::NEG_INFINITY,
                    // What a diverged model computes: never sampled.
                    4 => (0..self.vocab).step_by(3).for_each(|at| logits[at] = f32::NAN),
                    _ => {}
                }
                logits
            })
            .collect()
    }
}

impl Case for Argmax {
    fn bound(&self) -> f64 {
        0.0
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalFuture<'a, Result<Vec<f32>>> {
        Box::pin(async move {
            let chosen = Tensor::zeros(gpu, &[self.rows], "chosen")?;
            let mut recorder = gpu.record();
            let inputs = self.inputs();
            let at_once = if self.together { self.rows } else { 1 };
            for (index, rows) in inputs.chunks(at_once).enumerate() {
                let logits = Tensor::new(gpu, &[rows.len(), self.vocab], &rows.concat(), "logits")?;
                ops::sample(&mut recorder, &logits, Sampling::GREEDY, 0.0, &chosen, index * at_once)?;
            }
            tokens(recorder, &chosen).await
        })
    }

    fn reference(&self) -> Vec<f32> {
        self.inputs()
            .iter()
            .map(|logits| {
                let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                logits.iter().position(|x| *x == largest).unwrap_or(0) as f32
            })
            .collect()
    }
}

/// Sampling: [`ops::sample`] for several draws. Each draw lies inside some token's part of the exact cumulative
/// distribution (temperature, then top-k, then top-p, by sorting), and that token must come out.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Divides the logits.
    pub temperature: f32,
    /// Only the k best and their ties; 0 for all.
    pub top_k: u32,
    /// The approximate probability of the remaining tokens; 1 for all.
    pub top_p: f32,
    /// Logits are multiples of 1/4, so that cut-offs fall among equals.
    pub tied: bool,
    /// Draws.
    pub draws: usize,
}

struct Inputs {
    logits: Vec<f32>,
    /// In the middle of a step of the cumulative distribution, so that rounding cannot change what remains.
    top_p: f32,
    draws: Vec<f32>,
    expected: Vec<usize>,
}

/// Tokens whose part is narrower are not aimed at: masses are integers of 2^-30 and exponentials f32.
const NARROWEST: f64 = 1e-4;

impl Sample {
    fn inputs(&self) -> Inputs {
        let mut random = Random::new(&self.name());
        let logits: Vec<f32> = (0..self.vocab)
            .map(|_| {
                // The sum of uniforms: a bell, as logits are.
                let x: f64 = (0..4).map(|_| 4.0 * random.unit() - 2.0).sum();
                if self.tied { (x * 4.0).round() as f32 / 4.0 } else { x as f32 }
            })
            .collect();
        let mut order: Vec<usize> = (0..self.vocab).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
        if self.top_k > 0 && (self.top_k as usize) < self.vocab {
            let lowest = logits[order[self.top_k as usize - 1]];
            order.retain(|token| logits[*token] >= lowest);
        }
        let largest = f64::from(logits[order[0]]);
        let weight = |token: usize| ((f64::from(logits[token]) - largest) / f64::from(self.temperature)).exp();
        let total: f64 = order.iter().map(|token| weight(*token)).sum();
        let mut top_p = self.top_p;
        if self.top_p < 1.0 {
            let mut sum = 0.0;
            let mut remaining = 0;
            while remaining < order.len() && sum < f64::from(self.top_p) {
                // Equals stay together.
                let equal =
                    order[remaining..].iter().take_while(|token| logits[**token] == logits[order[remaining]]).count();
                let step: f64 = order[remaining..remaining + equal].iter().map(|token| weight(*token) / total).sum();
                top_p = (sum + step / 2.0) as f32;
                sum += step;
                remaining += equal;
            }
            order.truncate(remaining);
        }
        order.sort_unstable();
        let total: f64 = order.iter().map(|token| weight(*token)).sum();
        // The cumulative distribution in token order.
        let mut parts = Vec::new();
        let mut sum = 0.0;
        for token in order {
            let share = weight(token) / total;
            if share > NARROWEST {
                parts.push((token, sum, share));
            }
            sum += share;
        }
        let (mut draws, mut expected) = (Vec::new(), Vec::new());
        for draw in 0..self.draws {
            // The first and the last for certain.
            let index = match draw {
                0 => 0,
                1 => parts.len() - 1,
                _ => random.below(parts.len()),
            };
            let (token, start, share) = parts[index];
            draws.push((start + share * (0.1 + 0.8 * random.unit())) as f32);
            expected.push(token);
        }
        Inputs { logits, top_p, draws, expected }
    }
}

impl Case for Sample {
    fn bound(&self) -> f64 {
        0.0
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalFuture<'a, Result<Vec<f32>>> {
        Box::pin(async move {
            let inputs = self.inputs();
            let logits = Tensor::new(gpu, &[1, self.vocab], &inputs.logits, "logits")?;
            let chosen = Tensor::zeros(gpu, &[self.draws], "chosen")?;
            let sampling = Sampling { temperature: self.temperature, top_k: self.top_k, top_p: inputs.top_p };
            let mut recorder = gpu.record();
            for (place, draw) in inputs.draws.iter().enumerate() {
                ops::sample(&mut recorder, &logits, sampling, *draw, &chosen, place)?;
            }
            tokens(recorder, &chosen).await
        })
    }

    fn reference(&self) -> Vec<f32> {
        self.inputs().expected.into_iter().map(|token| token as f32).collect()
    }
}
