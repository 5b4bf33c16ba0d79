//! Cases of the matrix products.

use super::{Case, F32, Random, erf, read, stored};
use crate::Result;
use crate::gpu::Gpu;
use crate::io::LocalFuture;
use crate::ops::{self, Activation, Epilogue, MatmulKernel, Norm, Routes, SharedRows};
use crate::tensor::{Matrix, Precision, Tensor};

/// y = epilogue(x W^T): [`ops::linear`], or [`ops::linear_add`] where `accumulate`.
#[derive(Debug, Clone, Copy)]
pub struct Linear {
    /// Rows of x.
    pub m: usize,
    /// Rows of W.
    pub n: usize,
    /// Columns of both.
    pub k: usize,
    /// How W is stored.
    pub precision: Precision,
    /// Add a bias.
    pub bias: bool,
    /// Multiply by a vector last.
    pub gamma: bool,
    /// The activation.
    pub activation: Option<Activation>,
    /// Rows of W alternate gate and up.
    pub gated: bool,
    /// Add to some rows of a larger y.
    pub accumulate: bool,
    /// An RMS norm before the product: [`ops::linear_normed`]. Not with `accumulate`.
    pub norm: bool,
}

impl Default for Linear {
    fn default() -> Self {
        Self {
            m: 1,
            n: 1,
            k: 1,
            precision: Precision::F32,
            bias: false,
            gamma: false,
            activation: None,
            gated: false,
            accumulate: false,
            norm: false,
        }
    }
}

struct Inputs {
    x: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    gamma: Vec<f32>,
    before: Vec<f32>,
    gain: Vec<f32>,
}

/// The norm's constant, large enough to show.
const EPS: f32 = 1e-2;

/// Rows of y before and after those that are added to.
const BEFORE: usize = 2;
const AFTER: usize = 1;

impl Linear {
    fn outputs(&self) -> usize {
        if self.gated { self.n / 2 } else { self.n }
    }

    /// The result of one kernel, or of the one in use for such products. With `accumulate`, always the latter.
    pub(crate) async fn run_by(&self, gpu: &Gpu, kernel: Option<MatmulKernel>) -> Result<Vec<f32>> {
        let inputs = self.inputs();
        let outputs = self.outputs();
        let x = Tensor::new(gpu, &[self.m, self.k], &inputs.x, "x")?;
        let weight = Matrix::new(gpu, self.precision, self.k, &inputs.weight, "weight")?;
        let bias = Tensor::new(gpu, &[self.n], &inputs.bias, "bias")?;
        let gamma = Tensor::new(gpu, &[outputs], &inputs.gamma, "gamma")?;
        let epilogue = Epilogue {
            bias: self.bias.then_some(&bias),
            gamma: self.gamma.then_some(&gamma),
            activation: self.activation,
            gated: self.gated,
        };
        let mut recorder = gpu.record();
        let y = if self.accumulate {
            let y = Tensor::new(gpu, &[BEFORE + self.m + AFTER, outputs], &inputs.before, "y")?;
            ops::linear_add(&mut recorder, &x, &weight, epilogue, &y, BEFORE)?;
            y
        } else {
            let gain = Tensor::new(gpu, &[self.k], &inputs.gain, "gain")?;
            let norm = Norm { weight: gain, bias: None, eps: EPS, unit_offset: self.gated };
            let norm = self.norm.then_some(&norm);
            ops::linear_by(&mut recorder, kernel, &x, norm, &weight, epilogue)?
        };
        read(recorder, &[&y]).await
    }

    fn inputs(&self) -> Inputs {
        let mut random = Random::new(&self.name());
        Inputs {
            x: random.values(self.m * self.k, 1.0),
            // Sums have a variance of about 1, where activations bend most.
            weight: random.values(self.n * self.k, 3.0 / (self.k as f64).sqrt()),
            bias: random.values(self.n, 1.0),
            gamma: random.values(self.outputs(), 1.0),
            before: random.values((BEFORE + self.m + AFTER) * self.outputs(), 1.0),
            gain: random.values(self.k, 1.0),
        }
    }
}

/// The activations as their papers define them.
pub(super) fn activate(x: f64, activation: Option<Activation>) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match activation {
        None => x,
        Some(Activation::GeluErf) => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
        Some(Activation::GeluTanh) => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        }
        Some(Activation::Silu) => x * sigmoid(x),
        Some(Activation::QuickGelu) => x * sigmoid(1.702 * x),
    }
}

/// One output of a product: activation(row . x + bias), gated or not. No bias where it is empty.
fn output(x: &[f32], weight: &[f32], column: usize, bias: &[f32], activation: Option<Activation>, gated: bool) -> f64 {
    let k = x.len();
    let product = |row: usize| -> f64 {
        let sum: f64 = x.iter().zip(&weight[row * k..(row + 1) * k]).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
        sum + bias.get(row).copied().map_or(0.0, f64::from)
    };
    if gated {
        activate(product(2 * column), activation) * product(2 * column + 1)
    } else {
        activate(product(column), activation)
    }
}

impl Case for Linear {
    /// Like the default, with the activation by its name alone.
    fn name(&self) -> String {
        let name = format!("{self:?}");
        match self.activation {
            Some(activation) => name.replace(&format!("Some({activation:?})"), &format!("{activation:?}")),
            None => name,
        }
    }

    fn bound(&self) -> f64 {
        F32
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalFuture<'a, Result<Vec<f32>>> {
        Box::pin(self.run_by(gpu, None))
    }

    fn reference(&self) -> Vec<f32> {
        let Inputs { mut x, weight, bias, gamma, before, gain } = self.inputs();
        if self.norm {
            for row in x.chunks_exact_mut(self.k) {
                let squares: f64 = row.iter().map(|x| f64::from(*x).powi(2)).sum();
                let scale = 1.0 / (squares / self.k as f64 + f64::from(EPS)).sqrt();
                for (x, gain) in row.iter_mut().zip(&gain) {
                    *x = (f64::from(*x) * scale * (f64::from(*gain) + f64::from(u8::from(self.gated)))) as f32;
                }
            }
        }
        let weight = stored(self.precision, self.k, &weight);
        let bias = if self.bias { bias } else { Vec::new() };
        let outputs = self.outputs();
        let mut y = if self.accumulate { before } else { vec![0.0; self.m * outputs] };
        let first = if self.accumulate { BEFORE } else { 0 };
        for row in 0..self.m {
            for column in 0..outputs {
                let x = &x[row * self.k..(row + 1) * self.k];
                let mut value = output(x, &weight, column, &bias, self.activation, self.gated);
                if self.gamma {
                    value *= f64::from(gamma[column]);
                }
                let at = &mut y[(first + row) * outputs + column];
                *at = (f64::from(*at) + value) as f32;
            }
        }
        y
    }
}

/// The rows of one expert, the second of two: [`ops::linear_routed`]. Rows of y that are not the expert's keep their
/// values.
#[derive(Debug, Clone, Copy)]
pub struct RoutedLinear {
    /// Tokens in all; some of them chose the expert.
    pub tokens: usize,
    /// Experts that each token chose.
    pub top_k: usize,
    /// Rows of W.
    pub n: usize,
    /// Columns of W.
    pub k: usize,
    /// How W is stored.
    pub precision: Precision,
    /// Gate and up with SiLU, as in the first product of an expert.
    pub gated: bool,
    /// x has a row for each token, not for each slot.
    pub from_tokens: bool,
}

impl RoutedLinear {
    fn outputs(&self) -> usize {
        if self.gated { self.n / 2 } else { self.n }
    }

    fn activation(&self) -> Option<Activation> {
        self.gated.then_some(Activation::Silu)
    }

    /// x, W, y before, and the expert's slots.
    fn inputs(&self) -> (Vec<f32>, Vec<f32>, Vec<f32>, Vec<u32>) {
        let mut random = Random::new(&self.name());
        let slots = self.tokens * self.top_k;
        let x = random.values(if self.from_tokens { self.tokens } else { slots } * self.k, 1.0);
        let weight = random.values(self.n * self.k, 3.0 / (self.k as f64).sqrt());
        let before = random.values(slots * self.outputs(), 1.0);
        let mut list = Vec::new();
        for token in 0..self.tokens {
            let choice = random.below(self.top_k + 1);
            if choice < self.top_k {
                list.push((token * self.top_k + choice) as u32);
            }
        }
        (x, weight, before, list)
    }
}

impl Case for RoutedLinear {
    fn bound(&self) -> f64 {
        F32
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalFuture<'a, Result<Vec<f32>>> {
        Box::pin(async move {
            let (x, weight, before, list) = self.inputs();
            let x = Tensor::new(gpu, &[x.len() / self.k, self.k], &x, "x")?;
            let weight = Matrix::new(gpu, self.precision, self.k, &weight, "weight")?;
            let y = Tensor::new(gpu, &[self.tokens * self.top_k, self.outputs()], &before, "y")?;
            // Two experts' lists of 1 + tokens; what is past the slots must not be read.
            let mut lists = vec![u32::MAX; 2 * (1 + self.tokens)];
            lists[1 + self.tokens] = list.len() as u32;
            lists[2 + self.tokens..][..list.len()].copy_from_slice(&list);
            let mut recorder = gpu.record();
            let lists = Tensor::upload(&mut recorder, &[2, 1 + self.tokens], &lists, "lists")?;
            let epilogue = Epilogue { gated: self.gated, activation: self.activation(), ..Default::default() };
            let routes = Routes {
                lists: &lists,
                base: 1 + self.tokens,
                divisor: if self.from_tokens { self.top_k } else { 1 },
                capacity: self.tokens,
            };
            let rows = if self.from_tokens { SharedRows::new(&x) } else { SharedRows::of_slots(&x) };
            ops::linear_routed(&mut recorder, &rows, &weight, epilogue, routes, &y)?;
            read(recorder, &[&y]).await
        })
    }

    fn reference(&self) -> Vec<f32> {
        let (x, weight, mut y, list) = self.inputs();
        let weight = stored(self.precision, self.k, &weight);
        let outputs = self.outputs();
        for slot in list {
            let slot = slot as usize;
            let row = if self.from_tokens { slot / self.top_k } else { slot };
            let x = &x[row * self.k..(row + 1) * self.k];
            for column in 0..outputs {
                y[slot * outputs + column] = output(x, &weight, column, &[], self.activation(), self.gated) as f32;
            }
        }
        y
    }
}
