//! Measuring which matmul kernel is the fastest for each product on a device. The result is a [`Tuning`], which the
//! host stores from run to run.

mod timing;

use std::collections::{BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::time::Duration;

pub(crate) use timing::{repeats, time};

use web_time::Instant;

use crate::gpu::{Gpu, Recorder};
use crate::ops::cases::{Case, F32, Linear, compare};
use crate::ops::{
    Choice, Epilogue, MatmulKernel, MatmulShape, Rounding, Tuning, linear, matrix_units, set_matrix_units, set_tuning,
    tuning,
};
use crate::tensor::{Matrix, Precision, Tensor};
use crate::{Error, Result};

/// Rows of x that are measured on a software adapter, which is as busy with these as with more.
const MAX_ROWS_IN_SOFTWARE: usize = 128;
/// Target duration of one measurement of a kernel.
const DURATION: Duration = Duration::from_millis(4);
const MAX_REPEATS: usize = 1024;
/// Measurements of a kernel. The fastest counts: other programs may use the device too.
const RUNS: usize = 3;
/// How long a GPU is kept busy before anything is measured.
const WARM_UP: Duration = Duration::from_millis(100);
/// A kernel that is slower than the best one by this factor is not measured again.
const TOO_SLOW: f64 = 3.0;

/// Which kernels [`tune`] measures.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct TuneOptions {
    /// Also measure kernels that round activations to 8-bit integers, in groups of 32 with a scale, as llama.cpp does.
    /// They are fast where a device multiplies packed bytes, and have a normalised mean square error of about 2e-5.
    pub int8: bool,
}

impl TuneOptions {
    /// The same with kernels that round activations to 8-bit integers, or without.
    #[must_use]
    pub fn with_int8(mut self, int8: bool) -> Self {
        self.int8 = int8;
        self
    }

    fn allow(self, kernel: MatmulKernel) -> bool {
        self.int8 || kernel.rounding() != Rounding::Int8
    }
}

/// The measurement of one kernel.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Timing {
    /// The product.
    pub shape: MatmulShape,
    /// The kernel.
    pub kernel: MatmulKernel,
    /// Whether its result matches the reference.
    pub correct: bool,
    /// Its time; `None` if it is wrong, or much slower than another.
    pub microseconds: Option<f64>,
}

/// Measures the kernels that the device can run for each of these products, after comparing each with the reference,
/// and has the fastest used from now on. Earlier measurements stay, except those of kernels that `options` exclude.
/// `on_timing` may stop the measurements.
///
/// # Errors
/// [`Error::Cancelled`] if `on_timing` stopped; [device errors](crate::gpu). A kernel with a wrong result is no error:
/// it is left out.
pub async fn tune(
    gpu: &Gpu,
    products: impl IntoIterator<Item = MatmulShape>,
    options: TuneOptions,
    mut on_timing: impl FnMut(&Timing) -> ControlFlow<()>,
) -> Result<Tuning> {
    let mut tuning = tuning(gpu);
    if !tuning.is_of(&gpu.adapter().cache_name) {
        tuning = Tuning::none(gpu);
    }
    tuning.retain(|kernel| options.allow(kernel));
    let mut correct = HashMap::new();
    let shapes: BTreeSet<_> = products.into_iter().filter_map(MatmulShape::measured).collect();
    for shape in shapes {
        let measured = measure(gpu, shape, options, &mut correct, &mut on_timing).await;
        set_tuning(gpu, tuning.clone());
        if let Some(choice) = measured? {
            tuning.insert(shape, choice);
        }
    }
    set_tuning(gpu, tuning.clone());
    Ok(tuning)
}

/// Compares the kernels for matrix units (tensor cores) with the reference, once for a device. If all match, products use
/// them from then on. Returns whether they do. Models do this when they are loaded. It compiles a pipeline for each tile
/// and format, and does nothing on a device without matrix units.
///
/// # Errors
/// [Device errors](crate::gpu). A wrong result is no error: other kernels compute the products.
pub async fn check_matrix_units(gpu: &Gpu) -> Result<bool> {
    // Formats with readers of their own.
    const PRECISIONS: [Precision; 4] = [Precision::F16, Precision::Q8, Precision::Q6, Precision::Q4];
    if let Some(used) = matrix_units(gpu) {
        return Ok(used);
    }
    let mut correct = false;
    for sizes in MatmulKernel::default_on_matrix_units(gpu) {
        correct = true;
        for precision in PRECISIONS {
            // More than a tile of rows, and sizes that are multiples of nothing but four.
            let case = Linear { m: 131, n: 133, k: 132, precision, ..Linear::default() };
            correct = correct && matches(gpu, &case, MatmulKernel::Cooperative(sizes)).await?;
        }
        if !correct {
            break;
        }
    }
    set_matrix_units(gpu, correct);
    Ok(correct)
}

async fn measure(
    gpu: &Gpu,
    shape: MatmulShape,
    options: TuneOptions,
    correct: &mut HashMap<(MatmulKernel, Precision), bool>,
    on_timing: &mut impl FnMut(&Timing) -> ControlFlow<()>,
) -> Result<Option<Choice>> {
    let mut candidates = MatmulKernel::candidates(gpu, shape);
    // f32 weights are for those who want exact results.
    let exact = shape.precision == Precision::F32;
    candidates.retain(|kernel| options.allow(*kernel) && (!exact || kernel.rounding() == Rounding::None));
    if candidates.len() < 2 {
        return Ok(None);
    }
    let weights = uncached_weights(gpu, shape)?;
    let m = if gpu.is_software() { shape.m.min(MAX_ROWS_IN_SOFTWARE) } else { shape.m };
    let x = Tensor::zeros(gpu, &[m, shape.k], "x to measure")?;
    // All pipelines are made first: while one is compiled, a GPU idles and lowers its clock.
    for &kernel in &candidates {
        let key = (kernel, shape.precision);
        let is_correct = match correct.get(&key) {
            Some(is_correct) => *is_correct,
            None => *correct.entry(key).or_insert(matches_reference(gpu, shape, kernel).await?),
        };
        if is_correct {
            force(gpu, shape, kernel);
            time_products(gpu, &x, &weights, 1).await?;
        }
    }
    warm_up(gpu, &x, &weights).await?;
    let mut best: Option<Choice> = None;
    for kernel in candidates {
        let is_correct = correct[&(kernel, shape.precision)];
        let mut microseconds = None;
        if is_correct {
            force(gpu, shape, kernel);
            microseconds = fastest_time(gpu, &x, &weights, best.map(|best| best.microseconds)).await?;
        }
        if on_timing(&Timing { shape, kernel, correct: is_correct, microseconds }).is_break() {
            return Err(Error::Cancelled);
        }
        if let Some(microseconds) = microseconds
            && best.is_none_or(|best| microseconds < best.microseconds)
        {
            best = Some(Choice { kernel, microseconds });
        }
    }
    Ok(best)
}

/// Has products of `shape` computed by `kernel`, and forgets all other measurements.
fn force(gpu: &Gpu, shape: MatmulShape, kernel: MatmulKernel) {
    let mut tuning = Tuning::none(gpu);
    tuning.force(shape, kernel);
    set_tuning(gpu, tuning);
}

/// Random weights of a shape. On hardware there are enough matrices that no cache holds all of them, to be used in
/// rotation, as a model's are. (64 at most: of small matrices a model has no more.)
pub(crate) fn uncached_weights(gpu: &Gpu, shape: MatmulShape) -> Result<Vec<Matrix>> {
    const BYTES: u64 = 256 << 20;
    const MAX_MATRICES: u64 = 64;
    let bytes = Matrix::bytes_for(shape.precision, shape.n, shape.k).max(1);
    let count = if gpu.adapter().is_software() { 1 } else { BYTES.div_ceil(bytes).min(MAX_MATRICES) };
    (0..count).map(|_| Matrix::random(gpu, shape.precision, shape.n, shape.k, 1, "weight to measure")).collect()
}

/// Compares a kernel with the reference, on a small product whose sizes are multiples of nothing but four.
async fn matches_reference(gpu: &Gpu, shape: MatmulShape, kernel: MatmulKernel) -> Result<bool> {
    let m = if shape.m == 1 { 1 } else { 70 };
    matches(gpu, &Linear { m, n: 67, k: 132, precision: shape.precision, norm: true, ..Linear::default() }, kernel)
        .await
}

/// Whether a kernel computes a product as the reference does. The measurements in use come back afterwards.
async fn matches(gpu: &Gpu, case: &Linear, kernel: MatmulKernel) -> Result<bool> {
    let measured = tuning(gpu);
    force(gpu, MatmulShape { precision: case.precision, m: case.m, n: case.n, k: case.k }, kernel);
    let values = case.run(gpu).await;
    set_tuning(gpu, measured);
    let values = match values {
        Ok(values) => values,
        Err(error @ (Error::DeviceLost(_) | Error::OutOfMemory { .. })) => return Err(error),
        // Such as a driver that rejects the kernel.
        Err(_) => return Ok(false),
    };
    let bound = F32.max(kernel.rounding().nmse());
    Ok(compare(&case.name(), &values, &case.reference()).is_ok_and(|report| report.nmse <= bound))
}

/// Microseconds of a product by the kernel in use; `None` if it is much slower than `best`.
async fn fastest_time(gpu: &Gpu, x: &Tensor, weights: &[Matrix], best: Option<f64>) -> Result<Option<f64>> {
    let first = time_products(gpu, x, weights, 1).await?.min(time_products(gpu, x, weights, 1).await?);
    if best.is_some_and(|best| microseconds(first) > TOO_SLOW * best.max(1000.0)) {
        return Ok(None);
    }
    let repeat = repeats(gpu, DURATION, MAX_REPEATS, &mut products(x, weights)).await?;
    let mut fastest = f64::INFINITY;
    for _ in 0..RUNS {
        fastest = fastest.min(microseconds(time_products(gpu, x, weights, repeat).await?) / repeat as f64);
    }
    Ok(Some(fastest))
}

/// Keeps a GPU busy until its clock is up.
async fn warm_up(gpu: &Gpu, x: &Tensor, weights: &[Matrix]) -> Result<()> {
    const REPEATS: usize = 16;
    let started = Instant::now();
    while !gpu.is_software() && started.elapsed() < WARM_UP {
        time_products(gpu, x, weights, REPEATS).await?;
    }
    Ok(())
}

/// The time of `repeat` products by the kernel in use.
async fn time_products(gpu: &Gpu, x: &Tensor, weights: &[Matrix], repeat: usize) -> Result<Duration> {
    time(gpu, repeat, &mut products(x, weights)).await
}

/// Products of x with the weights in rotation.
fn products<'a>(x: &'a Tensor, weights: &'a [Matrix]) -> impl FnMut(&mut Recorder) -> Result<Tensor> + use<'a> {
    let mut rotation = weights.iter().cycle();
    move |recorder| match rotation.next() {
        Some(weight) => linear(recorder, x, weight, Epilogue::default()),
        None => Ok(x.clone()),
    }
}

fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
