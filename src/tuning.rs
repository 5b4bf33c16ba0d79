//! Measures which matmul kernel is the fastest for each matmul shape on a device. The result is a [`Tuning`], which the
//! host stores from run to run.

mod timing;

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::time::Duration;

pub(crate) use timing::{repeats, time};

use web_time::Instant;

use crate::gpu::{Gpu, Recorder};
use crate::ops::cases::{Attention, Case, F32, Linear, Storage, compare};
use crate::ops::{
    Checked, Choice, CooperativeAttention, Epilogue, MatmulKernel, MatmulShape, Rounding, Tuning, linear_by, tuning,
    update_tuning,
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
/// Within a budget, a product that takes longer is not measured again: it needs no average.
const LONG: Duration = Duration::from_millis(16);
/// How much faster than the default kernel another one must be to replace it within a budget. Times of the same kernel
/// differ by a few per cent from run to run, and a smaller gain is not worth the pipelines that are compiled for it.
const MIN_GAIN: f64 = 0.05;

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

    /// Int8 kernels are also measured where they are the default.
    fn allow(self, gpu: &Gpu, kernel: MatmulKernel) -> bool {
        let is_default = || Checked::NativeDots.passed(gpu) && !MatmulKernel::default_on_bytes(gpu).is_empty();
        self.int8 || kernel.rounding() != Rounding::Int8 || is_default()
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
    update_tuning(gpu, |tuning| tuning.retain(|kernel| options.allow(gpu, kernel)));
    let on_step = |timing: Option<&Timing>| timing.map_or(ControlFlow::Continue(()), &mut on_timing);
    let mut stopwatch = Stopwatch { gpu, correct: HashMap::new(), deadline: None, on_step };
    let is_measured = |shape: &MatmulShape| !(gpu.is_software() && shape.has_few_rows());
    let shapes: BTreeSet<_> = products.into_iter().filter(is_measured).map(MatmulShape::measured).collect();
    for shape in shapes {
        let mut kernels = MatmulKernel::candidates(gpu, shape);
        kernels.retain(|kernel| options.allow(gpu, *kernel) && is_exact_enough(*kernel, shape));
        if let Some(timings) = stopwatch.time(shape, &kernels).await?
            && let Some(choice) = fastest(&timings)
        {
            update_tuning(gpu, |tuning| tuning.insert(shape, choice));
        }
    }
    Ok(tuning(gpu))
}

/// Measures, in about the time of `budget`, whether other kernels than the default ones are faster for a model's
/// products ([`products`](crate::ops::products) with their numbers of uses), and has them used from now on. A host does
/// this when it loads a model on a GPU for the first time.
///
/// The products of one row (decoding) come first, then those of many rows (prompts), each in the order of their cost.
/// Those of 2 to 16 rows are left out.
/// For each product it measures a short list: the default kernel and the same one in the next sizes. Another one
/// replaces the default if it is at least 5 % faster. The budget includes pipelines and comparisons with the reference;
/// the measurement that exceeds it is dropped, and the products that are left keep their default kernels
/// ([`Tuning::leave`]). Products that the tuning in use [covers](Tuning::covers) are not measured again.
///
/// It measures nothing where [`GpuOptions`](crate::gpu::GpuOptions) switch off kernels that multiply bytes and would be
/// the default: results are stored for devices that use them.
///
/// `on_step` is called after each measurement, and after each pipeline, with `None`. It may stop: then measured
/// products keep their results, and a later call measures the others.
///
/// `store` gets what the host stores, at the end or when it was stopped. It is called before the first measurement too,
/// with all products left to their defaults: if a driver hangs or crashes meanwhile, the next run does not repeat that.
///
/// # Errors
/// [`Error::Cancelled`] if `on_step` stopped; [device errors](crate::gpu). A kernel with a wrong result is no error,
/// nor are weights to measure that do not fit into memory: the default stays.
pub async fn tune_within(
    gpu: &Gpu,
    products: &HashMap<MatmulShape, u64>,
    budget: Duration,
    on_step: impl FnMut(Option<&Timing>) -> ControlFlow<()>,
    mut store: impl FnMut(&Tuning),
) -> Result<()> {
    if gpu.capabilities().native_dots && !gpu.allows_int8() && !Checked::MatrixUnits.passed(gpu) {
        return Ok(());
    }
    let mut known = Tuning::none(gpu);
    update_tuning(gpu, |tuning| known.clone_from(tuning));
    let mut shapes = by_cost(products);
    shapes.retain(|shape| !known.covers([*shape]));
    if shapes.is_empty() {
        return Ok(());
    }
    known.leave(shapes.iter().copied());
    store(&known);
    let deadline = Some(Instant::now() + budget);
    let done = measure_short_lists(&mut Stopwatch { gpu, correct: HashMap::new(), deadline, on_step }, &shapes).await;
    gpu.trim();
    if done.is_ok() {
        update_tuning(gpu, |tuning| tuning.leave(shapes));
    }
    if matches!(done, Ok(()) | Err(Error::Cancelled)) {
        store(&tuning(gpu));
    }
    done
}

async fn measure_short_lists<F: FnMut(Option<&Timing>) -> ControlFlow<()>>(
    stopwatch: &mut Stopwatch<'_, F>,
    shapes: &[MatmulShape],
) -> Result<()> {
    let gpu = stopwatch.gpu;
    for &shape in shapes {
        let mut kernels = MatmulKernel::short_list(gpu, shape);
        kernels.retain(|kernel| is_exact_enough(*kernel, shape));
        let Some((&default, [_, ..])) = kernels.split_first() else { continue };
        // Twice, first and last: a clock that rises or falls meanwhile does not favour the others.
        kernels.push(default);
        match stopwatch.time(shape, &kernels).await {
            Ok(Some(timings)) => {
                if let Some(choice) = faster_than(default, &timings) {
                    update_tuning(gpu, |tuning| tuning.insert(shape, choice));
                }
            }
            Ok(None) => break,
            Err(Error::OutOfMemory { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The measured shapes of products: of one row, then of many, the most expensive first. Those of 2 to 16 rows keep
/// their default kernels.
fn by_cost(products: &HashMap<MatmulShape, u64>) -> Vec<MatmulShape> {
    let mut costs: BTreeMap<MatmulShape, f64> = BTreeMap::new();
    for (&shape, &uses) in products.iter().filter(|(shape, _)| !shape.has_few_rows()) {
        let MatmulShape { precision, m, n, k } = shape;
        let measured = shape.measured();
        // One row takes as long as its weights, many as long as their arithmetic.
        let cost = if m == 1 { Matrix::bytes_for(precision, n, k) as f64 } else { m as f64 * n as f64 * k as f64 };
        *costs.entry(measured).or_default() += uses as f64 * cost;
    }
    let mut shapes: Vec<_> = costs.into_iter().collect();
    shapes.sort_by(|(a, cost_a), (b, cost_b)| (a.m > 1).cmp(&(b.m > 1)).then(cost_b.total_cmp(cost_a)));
    shapes.into_iter().map(|(shape, _)| shape).collect()
}

/// Whether a kernel may compute a product: f32 weights are for those who want exact results, and the activations of
/// some language models, whose products are measured, are too large to be added in f16.
fn is_exact_enough(kernel: MatmulKernel, shape: MatmulShape) -> bool {
    match kernel.rounding() {
        Rounding::None => true,
        Rounding::F16Sums => false,
        _ => shape.precision != Precision::F32,
    }
}

/// The fastest of the correct kernels.
fn fastest(timings: &[Timing]) -> Option<Choice> {
    let times = timings.iter().filter(|timing| timing.correct);
    let choices = times.filter_map(|timing| Some(Choice { kernel: timing.kernel, microseconds: timing.microseconds? }));
    choices.min_by(|a, b| a.microseconds.total_cmp(&b.microseconds))
}

/// The fastest of the correct kernels, or the default one if none is faster by [`MIN_GAIN`].
fn faster_than(default: MatmulKernel, timings: &[Timing]) -> Option<Choice> {
    let of_default: Vec<_> = timings.iter().filter(|timing| timing.kernel == default).cloned().collect();
    let best = fastest(timings)?;
    match fastest(&of_default) {
        Some(default) if best.microseconds > (1.0 - MIN_GAIN) * default.microseconds => Some(default),
        _ => Some(best),
    }
}

/// Checks the kernels that round factors and run by default: those for matrix units ([`check_matrix_units`]), those
/// that multiply bytes ([`check_native_dots`]), and those that add in f16 ([`check_f16_sums`]). Models do this when
/// they are loaded.
///
/// # Errors
/// [Device errors](crate::gpu). A wrong result is no error: other kernels compute the products.
pub async fn check_rounding_kernels(gpu: &Gpu) -> Result<()> {
    if !check_matrix_units(gpu).await? {
        check_native_dots(gpu).await?;
        check_f16_sums(gpu).await?;
    }
    Ok(())
}

/// Compares the kernels that multiply bytes with the reference, once for a GPU with
/// [`native_dots`](crate::gpu::Capabilities). If all match, products of several rows with quantised weights use them
/// from then on, except where matrix units compute them: x is rounded to 8 bits in groups of 32, for a normalised mean
/// square error of about 2e-5. Returns whether they do. [`GpuOptions`](crate::gpu::GpuOptions) can switch this off.
///
/// # Errors
/// [Device errors](crate::gpu). A wrong result is no error: other kernels compute the products.
pub async fn check_native_dots(gpu: &Gpu) -> Result<bool> {
    // One of each way in which integers and scales are stored.
    const PRECISIONS: [Precision; 7] =
        [Precision::Q8, Precision::Q6, Precision::Q5, Precision::Q5K, Precision::Q4, Precision::Q4K, Precision::Q4_0];
    if let Some(used) = Checked::NativeDots.result(gpu) {
        return Ok(used);
    }
    let kernels = MatmulKernel::default_on_bytes(gpu);
    let correct = all_match(gpu, &kernels, &PRECISIONS, true).await?;
    Checked::NativeDots.set(gpu, correct);
    Ok(correct)
}

/// Compares the kernels that add in f16 with the reference, once for a GPU with packed f16 arithmetic
/// ([`packed_f16`](crate::gpu::Capabilities)). If all match, products whose inputs the reference has in f16 use them
/// from then on, except where matrix units compute them. Returns whether they do.
///
/// # Errors
/// [Device errors](crate::gpu). A wrong result is no error: other kernels compute the products.
pub async fn check_f16_sums(gpu: &Gpu) -> Result<bool> {
    if let Some(used) = Checked::F16Sums.result(gpu) {
        return Ok(used);
    }
    let runs = gpu.capabilities().packed_f16 && !gpu.is_software();
    let kernels = [4, 8].map(|rows| MatmulKernel::F16Sums { rows });
    let correct = runs && all_match(gpu, &kernels, &CHECKED_PRECISIONS, false).await?;
    Checked::F16Sums.set(gpu, correct);
    Ok(correct)
}

/// One of each reader of weights, and of each way in which scales are stored.
const CHECKED_PRECISIONS: [Precision; 6] =
    [Precision::F16, Precision::Q8, Precision::Q6, Precision::Q4, Precision::Q4K, Precision::Q4_0];

/// Compares the kernels for matrix units (tensor cores) with the reference, once for a device. If all kernels of
/// products match, products use them from then on. Attention is checked separately. Returns whether products use them.
/// Models do this when they are loaded. It compiles a pipeline for each tile and format and up to five of attention,
/// and does nothing on a device without matrix units.
///
/// # Errors
/// [Device errors](crate::gpu). A wrong result is no error: other kernels compute the products.
pub async fn check_matrix_units(gpu: &Gpu) -> Result<bool> {
    if let Some(used) = Checked::MatrixUnits.result(gpu) {
        return Ok(used);
    }
    let kernels: Vec<_> =
        MatmulKernel::default_on_matrix_units(gpu).into_iter().map(MatmulKernel::Cooperative).collect();
    let correct = all_match(gpu, &kernels, &CHECKED_PRECISIONS, false).await?;
    Checked::MatrixUnits.set(gpu, correct);
    if !gpu.capabilities().cooperative_sizes.is_empty() && !gpu.is_software() {
        check_attention(gpu).await?;
    }
    Ok(correct)
}

/// Whether attention runs on the device's matrix units: it does after [`check_matrix_units`], if it passed.
pub fn has_attention_on_matrix_units(gpu: &Gpu) -> bool {
    Checked::AttentionOnMatrixUnits.passed(gpu)
}

/// Compares attention on matrix units with the reference, for short, usual and long heads: those that fit the device's
/// workgroup memory.
async fn check_attention(gpu: &Gpu) -> Result<()> {
    // The kernel under test is the one that runs from now on.
    Checked::AttentionOnMatrixUnits.set(gpu, true);
    let mut correct = false;
    let heads = [64, 72, 128, 160, 256];
    for head_dim in
        heads.into_iter().filter(|head_dim| CooperativeAttention::of(gpu.capabilities(), *head_dim).is_some())
    {
        let storage = if head_dim == 64 { Storage::Packed } else { Storage::F16 };
        let case =
            Attention { heads: 2, kv_heads: 1, head_dim, times: 81, keys: 81, causal: true, storage, exact: false };
        let agreed = agrees(&case, case.run(gpu).await, case.bound());
        if agreed.is_err() {
            Checked::AttentionOnMatrixUnits.set(gpu, false);
        }
        correct = agreed?;
        if !correct {
            break;
        }
    }
    Checked::AttentionOnMatrixUnits.set(gpu, correct);
    Ok(())
}

/// Measures kernels. `on_step` is called after each measurement, and after each pipeline, with `None`; it may stop.
struct Stopwatch<'a, F> {
    gpu: &'a Gpu,
    /// Whether kernels match the reference.
    correct: HashMap<(MatmulKernel, Precision), bool>,
    /// No step starts later.
    deadline: Option<Instant>,
    on_step: F,
}

impl<F: FnMut(Option<&Timing>) -> ControlFlow<()>> Stopwatch<'_, F> {
    /// The times of kernels for a product; `None` if the time is over before all are measured, or there is no choice.
    async fn time(&mut self, shape: MatmulShape, kernels: &[MatmulKernel]) -> Result<Option<Vec<Timing>>> {
        if kernels.len() < 2 || self.is_over() {
            return Ok(None);
        }
        let gpu = self.gpu;
        let weights = uncached_weights(gpu, shape)?;
        let m = if gpu.is_software() { shape.m.min(MAX_ROWS_IN_SOFTWARE) } else { shape.m };
        let x = Tensor::zeros(gpu, &[m, shape.k], "x to measure")?;
        // All pipelines are made first: while one is compiled, a GPU idles and lowers its clock.
        let mut made_pipelines = false;
        for &kernel in kernels {
            let key = (kernel, shape.precision);
            if let Entry::Vacant(unknown) = self.correct.entry(key) {
                unknown.insert(matches_reference(gpu, shape, kernel).await?);
                made_pipelines = true;
            }
            if self.correct[&key] {
                time_products(gpu, kernel, &x, &weights, 1).await?;
            }
            if self.step(None)? {
                return Ok(None);
            }
        }
        let correct = |kernel: MatmulKernel| self.correct[&(kernel, shape.precision)];
        if let Some(kernel) = kernels.iter().copied().find(|kernel| made_pipelines && correct(*kernel)) {
            warm_up(gpu, kernel, &x, &weights).await?;
        }
        let mut timings: Vec<Timing> = Vec::new();
        for &kernel in kernels {
            let correct = self.correct[&(kernel, shape.precision)];
            let microseconds = match fastest(&timings).map(|best| best.microseconds) {
                best if correct => self.fastest_time(kernel, &x, &weights, best).await?,
                _ => None,
            };
            timings.push(Timing { shape, kernel, correct, microseconds });
            if self.step(timings.last())? && timings.len() < kernels.len() {
                return Ok(None);
            }
        }
        Ok(Some(timings))
    }

    /// Microseconds of a product; `None` if it is much slower than `best`.
    async fn fastest_time(
        &self,
        kernel: MatmulKernel,
        x: &Tensor,
        weights: &[Matrix],
        best: Option<f64>,
    ) -> Result<Option<f64>> {
        let gpu = self.gpu;
        let first = time_products(gpu, kernel, x, weights, 1).await?;
        let first = first.min(time_products(gpu, kernel, x, weights, 1).await?);
        if best.is_some_and(|best| microseconds(first) > TOO_SLOW * best.max(1000.0)) {
            return Ok(None);
        }
        if self.deadline.is_some() && first > LONG {
            return Ok(Some(microseconds(first)));
        }
        let repeat = repeats(gpu, DURATION, MAX_REPEATS, &mut products(kernel, x, weights)).await?;
        let mut fastest = f64::INFINITY;
        for _ in 0..RUNS {
            let time = time_products(gpu, kernel, x, weights, repeat).await?;
            fastest = fastest.min(microseconds(time) / repeat as f64);
        }
        Ok(Some(fastest))
    }

    /// Reports a step and returns whether it was the last one.
    fn step(&mut self, timing: Option<&Timing>) -> Result<bool> {
        if (self.on_step)(timing).is_break() {
            return Err(Error::Cancelled);
        }
        Ok(self.is_over())
    }

    fn is_over(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }
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
    // Rows past the end of a tile, where there is more than one.
    let m = if shape.m > 1 && !shape.has_few_rows() { 70 } else { shape.m + shape.m / 2 };
    matches(gpu, &Linear { m, n: 67, k: 132, precision: shape.precision, norm: true, ..Linear::default() }, kernel)
        .await
}

/// Whether a kernel computes a product as the reference does.
async fn matches(gpu: &Gpu, case: &Linear, kernel: MatmulKernel) -> Result<bool> {
    agrees(case, case.run_by(gpu, Some(kernel)).await, F32.max(kernel.rounding().nmse()))
}

/// Whether the values that a case gave are those of its reference.
fn agrees(case: &dyn Case, values: Result<Vec<f32>>, bound: f64) -> Result<bool> {
    match values {
        Ok(values) => Ok(compare(&case.name(), &values, &case.reference()).is_ok_and(|report| report.nmse <= bound)),
        Err(error @ (Error::DeviceLost(_) | Error::OutOfMemory { .. })) => Err(error),
        // Such as a driver that rejects the kernel.
        Err(_) => Ok(false),
    }
}

/// Whether each of the kernels computes products as the reference does, with weights of each precision; not if there
/// is no kernel.
async fn all_match(gpu: &Gpu, kernels: &[MatmulKernel], precisions: &[Precision], norm: bool) -> Result<bool> {
    for &kernel in kernels {
        for &precision in precisions {
            // More than a tile of rows, an odd number of groups, and sizes that are multiples of nothing but four.
            let case = Linear { m: 131, n: 133, k: 132, precision, norm, ..Linear::default() };
            if !matches(gpu, &case, kernel).await? {
                return Ok(false);
            }
        }
    }
    Ok(!kernels.is_empty())
}

/// Keeps a GPU busy until its clock is up.
async fn warm_up(gpu: &Gpu, kernel: MatmulKernel, x: &Tensor, weights: &[Matrix]) -> Result<()> {
    const REPEATS: usize = 16;
    let started = Instant::now();
    // One at a time if they are long.
    let mut repeat = 1;
    while !gpu.is_software() && started.elapsed() < WARM_UP {
        let time = time_products(gpu, kernel, x, weights, repeat).await?;
        repeat = if time < DURATION { REPEATS } else { 1 };
    }
    Ok(())
}

/// The time of `repeat` products.
async fn time_products(
    gpu: &Gpu,
    kernel: MatmulKernel,
    x: &Tensor,
    weights: &[Matrix],
    repeat: usize,
) -> Result<Duration> {
    time(gpu, repeat, &mut products(kernel, x, weights)).await
}

/// Products of x with the weights in rotation.
fn products<'a>(
    kernel: MatmulKernel,
    x: &'a Tensor,
    weights: &'a [Matrix],
) -> impl FnMut(&mut Recorder) -> Result<Tensor> + use<'a> {
    let mut rotation = weights.iter().cycle();
    move |recorder| match rotation.next() {
        Some(weight) => linear_by(recorder, Some(kernel), x, None, weight, Epilogue::default()),
        None => Ok(x.clone()),
    }
}

fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: MatmulShape = MatmulShape { precision: Precision::Q4, m: 1, n: 64, k: 64 };
    const DEFAULT: MatmulKernel = MatmulKernel::Matvec;
    const OTHER: MatmulKernel = MatmulKernel::Packed { columns: 4 };

    fn timing(kernel: MatmulKernel, correct: bool, microseconds: f64) -> Timing {
        Timing { shape: SHAPE, kernel, correct, microseconds: Some(microseconds) }
    }

    /// The kernel that stays or replaces the default one, which was measured to take `default` microseconds and at last
    /// `again`, where the other one takes 94.
    fn chosen(default: f64, again: f64, other_is_correct: bool) -> Option<MatmulKernel> {
        let other = timing(OTHER, other_is_correct, 94.0);
        let timings = [timing(DEFAULT, true, default), other, timing(DEFAULT, true, again)];
        faster_than(DEFAULT, &timings).map(|choice| choice.kernel)
    }

    #[test]
    fn another_kernel_replaces_the_default_one_if_it_is_correct_and_faster_by_five_per_cent() {
        assert_eq!(chosen(100.0, 100.0, true), Some(OTHER));
        assert_eq!(chosen(98.0, 98.0, true), Some(DEFAULT));
        assert_eq!(chosen(100.0, 98.0, true), Some(DEFAULT), "the faster of both measurements counts");
        assert_eq!(chosen(100.0, 100.0, false), Some(DEFAULT), "a wrong result does not count");
        let wrong = timing(DEFAULT, false, 90.0);
        assert_eq!(faster_than(DEFAULT, &[wrong.clone(), timing(OTHER, true, 94.0)]).map(|c| c.kernel), Some(OTHER));
        assert!(faster_than(DEFAULT, &[wrong, timing(OTHER, false, 94.0)]).is_none());
    }

    #[test]
    fn decoding_is_measured_before_prompts_and_the_most_expensive_first() {
        let of = |m, n| MatmulShape { m, n, ..SHAPE };
        let products = HashMap::from([
            (of(1, 64), 100),
            (of(1, 1024), 1),
            (of(512, 64), 1),
            (of(300, 96), 1),
            (of(256, 96), 1),
            (of(2, 4096), 1000),
        ]);
        // 256 and 300 rows count for 512; two rows are not measured.
        assert_eq!(by_cost(&products), [of(1, 64), of(1, 1024), of(512, 96), of(512, 64)]);
    }
}
