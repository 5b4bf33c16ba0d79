//! One case, several uses: an op's parameters as a struct that makes its own inputs, computes what must come out in
//! plain f64 Rust, and knows its error bound. The property tests, the self-check on a user's own device and tuning all
//! run these. (Costs are defined where the op is dispatched.)
//!
//! References follow the definition of the op, not the algorithm of the shader: mining is upsampled, gathered and
//! normalised cell by cell, top-p sorts, attention has its whole row of scores.

mod attention;
mod convolution;
mod denoise;
mod gather;
mod inpaint;
mod linear;
mod maps;
mod matrix;
mod mining;
mod norm;
mod random;
mod rope;
mod routing;
mod sampling;

use std::fmt;

use crate::gpu::{Gpu, Recorder};
use crate::io::LocalFuture;
use crate::ops::ConvMode;
use crate::tensor::{Packed, Precision, Tensor, dequantize, pack_rows};
use crate::{Error, Result};

pub use attention::{
    Attention, AttentionBatched, AttentionPaged, AttentionSegments, ScoredAttention, ScoredPaged, Storage,
};
pub use convolution::{Depthwise, Patches, Resize};
pub use denoise::Denoise;
pub use gather::{Gather, GatherRows};
pub use inpaint::Inpaint;
pub use linear::{Linear, RoutedLinear};
pub use maps::{Concatenate, Convolution, GroupNorm, Softmax};
pub use matrix::MatrixRows;
pub use mining::{Map, Mining, MiningStats};
pub use norm::{Norm, NormAdd};
pub use random::Random;
pub use rope::{PlacedRope, Rope, RopeRows};
pub use routing::{Combine, GatedAdd, Route, RouteOfAll, Softcap};
pub use sampling::{Adjust, Argmax, Logprobs, Sample, SampleRows};

/// Bound on the normalised mean square error of f32 arithmetic that sums a few thousand terms: 3e-6 root mean square.
///
/// Derived from the arithmetic, not from results of the kernels: rounding errors of 2^-24 a step over n terms of random
/// sign add up to about 2^-24 sqrt(n), 4e-6 in one chain of 4096; the kernels sum in 64 chains or by fours, and Vulkan
/// and WebGPU let exp, inverseSqrt and division err by a few units in the last place more. A kernel that drops one term
/// in a thousand is off by 1e-3, five orders of magnitude above the bound.
pub const F32: f64 = 1e-11;
/// Attention whose queries, keys, values and probabilities are rounded to f16.
pub const ATTENTION_F16: f64 = 1e-6;

/// A test case of an op.
pub trait Case: fmt::Debug + Sync {
    /// The op and its parameters; also the seed of the inputs.
    fn name(&self) -> String {
        format!("{self:?}")
    }
    /// The normalised mean square error that is allowed. 0 where the result must be exact.
    fn bound(&self) -> f64;
    /// The result of the device.
    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalFuture<'a, Result<Vec<f32>>>;
    /// The expected result.
    fn reference(&self) -> Vec<f32>;
}

/// How far a result is from its reference.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Report {
    /// Largest absolute difference.
    pub max_error: f64,
    /// Sum of squared differences over sum of squares.
    pub nmse: f64,
}

/// Compares values with their reference.
///
/// # Errors
/// Another number of values; a NaN, or an infinity that only one side has: named, before any error is computed, since
/// either would make it meaningless.
pub fn compare(name: &str, values: &[f32], reference: &[f32]) -> Result<Report> {
    let fail = |reason: String| Err(Error::Gpu(format!("{name}: {reason}")));
    if values.len() != reference.len() {
        return fail(format!("{} values, expected {}", values.len(), reference.len()));
    }
    let (mut max_error, mut squares, mut scale) = (0.0f64, 0.0, 0.0);
    for (index, (value, expected)) in values.iter().zip(reference).enumerate() {
        if value.is_nan() || expected.is_nan() || (!(value.is_finite() && expected.is_finite()) && value != expected) {
            return fail(format!("{value} at element {index} of {}, expected {expected}", values.len()));
        }
        if value != expected {
            let error = f64::from(*value) - f64::from(*expected);
            max_error = max_error.max(error.abs());
            squares += error * error;
        }
        if expected.is_finite() {
            scale += f64::from(*expected).powi(2);
        }
    }
    let nmse = if squares == 0.0 { 0.0 } else { squares / scale.max(f64::MIN_POSITIVE) };
    Ok(Report { max_error, nmse })
}

/// Runs a case and compares it with its reference; on a device with guard zones, checks those as well.
///
/// # Errors
/// As [`compare`]; an error above the bound; a guard zone that was written to.
pub async fn check(gpu: &Gpu, case: &dyn Case) -> Result<Report> {
    let name = case.name();
    let values = case.run(gpu).await?;
    gpu.check_guards().await.map_err(|error| Error::Gpu(format!("{name}: {error}")))?;
    let report = compare(&name, &values, &case.reference())?;
    if report.nmse > case.bound() {
        return Err(Error::Gpu(format!(
            "{name}: the normalised mean square error is {:.2e}, the bound {:.0e}; the largest error is {:.2e}",
            report.nmse,
            case.bound(),
            report.max_error
        )));
    }
    Ok(report)
}

/// A short list with every op in it, for the check of a user's own device: a few seconds even in software.
pub fn self_check() -> Vec<Box<dyn Case>> {
    let mut cases: Vec<Box<dyn Case>> = Vec::new();
    for precision in Precision::ALL {
        for m in [1, 70] {
            cases.push(Box::new(Linear { m, n: 67, k: 131, precision, bias: true, ..Linear::default() }));
        }
        cases.push(Box::new(Gather { rows: 37, columns: 70, precision, count: 9, start: 2 }));
    }
    let routed =
        RoutedLinear { tokens: 9, top_k: 2, n: 66, k: 36, precision: Precision::Q8, gated: true, from_tokens: true };
    let attention = Attention {
        heads: 6,
        kv_heads: 2,
        head_dim: 40,
        times: 3,
        keys: 300,
        causal: true,
        storage: Storage::F32,
        exact: true,
    };
    let rotary = Rope {
        heads: 3,
        kv_heads: 1,
        head_dim: 20,
        times: 9,
        position: 11,
        k: 37,
        precision: Precision::F32,
        half: false,
        freq_factors: true,
    };
    let map = Map { height: 16, width: 24, channels: [24, 40, 33, 65], ratios: [1, 2, 4, 8], pool: 1 };
    cases.extend([
        Box::new(routed) as Box<dyn Case>,
        Box::new(Norm { rows: 3, k: 260, centred: true, unit_offset: false, eps: 1e-5, shift: 1.0 }),
        Box::new(Norm { rows: 3, k: 260, centred: false, unit_offset: true, eps: 1e-6, shift: 0.0 }),
        Box::new(attention),
        Box::new(Attention { times: 70, keys: 70, storage: Storage::Packed, ..attention }),
        Box::new(Attention { times: 1, storage: Storage::F16, ..attention }),
        Box::new(AttentionSegments {
            heads: 6,
            kv_heads: 2,
            head_dim: 40,
            prefix: 70,
            suffixes: [3, 1, 20],
            generated: 2,
            half: true,
            exact: true,
        }),
        // Browsers do not use it yet.
        #[cfg(feature = "engine")]
        Box::new(AttentionPaged {
            heads: 6,
            kv_heads: 2,
            head_dim: 40,
            sequences: vec![(1, 300), (1, 17)],
            half: true,
            form: crate::ops::PagedForm::Decode,
        }),
        Box::new(Denoise {
            count: 300,
            copies: 2,
            step: crate::ops::Denoise {
                guidance_scale: Some(5.0),
                denoised: [1.0, -2.0],
                limit: 1.5,
                next: [0.9, 0.2, 0.3, -0.1, 0.5],
                input_scale: 0.5,
            },
            noise: true,
        }),
        Box::new(Inpaint {
            pixels: 75,
            channels: 4,
            copies: 2,
            step: crate::ops::Inpaint { kept: [0.8, 0.6], input_scale: 0.5 },
        }),
        Box::new(Rope { times: 1, precision: Precision::Q4, half: true, ..rotary }),
        Box::new(rotary),
        Box::new(Patches { height: 13, width: 10, channels: 3, size: 4, planar: true, first: 1, count: 4 }),
        Box::new(Depthwise { height: 9, width: 11, channels: 7 }),
        Box::new(Convolution {
            images: 2,
            height: 7,
            width: 5,
            channels: 36,
            out: 37,
            precision: Precision::F16,
            residual: true,
            ..Convolution::default()
        }),
        Box::new(Convolution {
            height: 6,
            width: 9,
            channels: 32,
            out: 5,
            precision: Precision::Q8,
            mode: ConvMode::Upsample2,
            ..Convolution::default()
        }),
        Box::new(GroupNorm { images: 2, height: 9, width: 5, channels: 60, groups: 6, silu: true, shift: 3.0 }),
        Box::new(Concatenate { pixels: 130, channels: [36, 132] }),
        Box::new(Softmax { rows: 5, k: 300, stride: 303 }),
        Box::new(AttentionBatched { sequences: 2, heads: 2, head_dim: 64, times: 70, keys: Some(77), exact: true }),
        Box::new(Resize { from: (7, 5), channels: 3, to: (12, 13) }),
        Box::new(MiningStats { map }),
        Box::new(Mining { map, side: 2, window: 8, origin: (0, 8) }),
        Box::new(Route { tokens: 70, experts: 8, top_k: 2 }),
        Box::new(RouteOfAll(Route { tokens: 9, experts: 80, top_k: 4 })),
        Box::new(GatedAdd { tokens: 5, width: 33 }),
        Box::new(Softcap { count: 131, cap: 30.0 }),
        Box::new(NormAdd(Norm { rows: 3, k: 260, centred: false, unit_offset: false, eps: 1e-6, shift: 0.0 })),
        Box::new(RopeRows {
            heads: 4,
            kv_heads: 2,
            head_dim: 24,
            rotated: 12,
            times: 5,
            position: 3,
            norm: Some([false, true]),
            query_factor: true,
            half: true,
            placed: false,
        }),
        Box::new(Combine { tokens: 5, experts: 8, top_k: 2, width: 33 }),
        Box::new(Argmax { vocab: 1000, rows: 4, together: true }),
        Box::new(Sample { vocab: 1000, temperature: 0.7, top_k: 50, top_p: 0.9, tied: false, draws: 8 }),
        Box::new(SampleRows { vocab: 1000, rows: 7, greedy: false, tied: false, draws: 2 }),
        Box::new(Adjust { vocab: 300, rows: 3, biases: 9 }),
        Box::new(Logprobs { vocab: 5000, rows: 2, top: 20, tied: false }),
    ]);
    cases
}

/// Reads tensors back, one after the other, once everything recorded has run.
async fn read(mut recorder: Recorder, tensors: &[&Tensor]) -> Result<Vec<f32>> {
    let pending: Vec<_> = tensors.iter().map(|tensor| tensor.read_back(&mut recorder)).collect();
    recorder.submit()?;
    let mut values = Vec::new();
    for readback in pending {
        values.extend(readback.values::<f32>().await?);
    }
    Ok(values)
}

/// What packed weights stand for.
fn stored(precision: Precision, columns: usize, values: &[f32]) -> Vec<f32> {
    let packed: Packed = pack_rows(precision, columns, values);
    dequantize(precision, columns, &packed)
}

/// The error function, by a series of positive terms: erf x = 2 / sqrt(pi) exp(-x^2) sum of 2^n
/// x^(2n + 1) / (2n + 1)!!.
fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let mut term = x;
    let mut sum = x;
    let mut n = 1.0;
    while term.abs() > 1e-18 {
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
        n += 1.0;
    }
    std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum
}

#[cfg(test)]
mod tests {
    use super::{compare, erf};

    /// Values from Abramowitz and Stegun, table 7.1.
    #[test]
    fn the_error_function_has_its_table_values() {
        for (x, expected) in [(0.0, 0.0), (0.5, 0.5204998778), (1.0, 0.8427007929), (2.0, 0.9953222650), (7.0, 1.0)] {
            assert!((erf(x) - expected).abs() < 1e-10 && (erf(-x) + expected).abs() < 1e-10, "erf {x} = {}", erf(x));
        }
    }

    #[test]
    fn a_nan_or_a_one_sided_infinity_fails_by_name() {
        let infinity = f32::INFINITY;
        for (value, expected) in
            [(f32::NAN, 1.0), (1.0, f32::NAN), (infinity, 1.0), (1.0, infinity), (infinity, -infinity)]
        {
            let error = compare("op", &[0.0, value], &[0.0, expected]).expect_err("must fail").to_string();
            assert!(error.contains("op: ") && error.contains("element 1"), "{error}");
        }
        assert_eq!(compare("op", &[infinity, 2.0], &[infinity, 2.0]).expect("equal").nmse, 0.0);
        assert!(compare("op", &[1.0], &[1.0, 2.0]).is_err());
        let report = compare("op", &[1.0, 3.0], &[1.0, 2.0]).expect("finite");
        assert_eq!((report.max_error, report.nmse), (1.0, 0.2));
    }
}
