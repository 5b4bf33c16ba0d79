//! Which form of a kernel is the fastest on a device: measured once, kept by the host, looked up at every product.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::OnceLock;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::cases::{Case, F32, Linear, compare};
use super::form::{Form, MATVEC_ROWS, Rounding};
use super::linear::{Epilogue, linear};
use super::specialisations::product_kernels;
use super::timing;
use crate::gpu::{Gpu, Recorder};
use crate::tensor::{Matrix, Piece, Precision, Tensor};
use crate::{Error, Result};

/// Rows of x that stand for many: a prompt's portion.
const MANY: usize = 512;
/// Rows of x that are measured for these on a software adapter, which is as busy with fewer.
const MANY_IN_SOFTWARE: usize = 128;
/// Time that a measurement of one form takes, about.
const TIME: Duration = Duration::from_millis(4);
const MOST_REPEATS: usize = 1024;
/// Measurements of a form, of which the least counts: others may use the device as well.
const RUNS: usize = 3;
/// A form that takes so many times as long as the best one is not measured again.
const HOPELESS: f64 = 3.0;
/// Bound on the normalised mean square error where both factors are rounded to f16. Of values drawn uniformly from -1 to 1, of mean
/// square 1/3, most of the error is that of the upper half, in steps of 2^-11: 2^-22 / 12, over 1/3, for each factor.
const HALF: f64 = 1.0 / (1 << 23) as f64;

/// The same where x is rounded to 8 bits: steps of a 127th of the largest of 32, off by a step / sqrt(12), where the largest is at
/// most three times the root of the mean square.
const BYTES: f64 = (3.0 / 127.0) * (3.0 / 127.0) / 12.0;

/// Which forms of kernels [`tune`] measures.
#[derive(Debug, Clone, Copy, Default)]
pub struct TuneOptions {
    /// Also those that round activations to integers of 8 bits, 32 at a time with a scale, as llama.cpp does: fast where a device
    /// multiplies packed bytes, and some 2e-5 of the mean square off.
    pub int8: bool,
}

impl TuneOptions {
    fn allow(self, form: Form) -> bool {
        self.int8 || form.rounding() != Rounding::Bytes
    }
}

/// A matrix product, as far as the choice of a kernel depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Shape {
    /// How the weights are stored.
    pub precision: Precision,
    /// Rows of x.
    pub m: usize,
    /// Rows of W.
    pub n: usize,
    /// Columns of both.
    pub k: usize,
}

impl Shape {
    pub(super) fn of(piece: &Piece, m: usize, k: usize) -> Self {
        Self { precision: piece.precision, m, n: piece.rows, k }
    }

    /// The shape whose measurement holds for this one: of one row, or of many. Those between are not measured.
    fn measured(self) -> Option<Self> {
        match self.m {
            1 => Some(self),
            m if m > MATVEC_ROWS => Some(Self { m: MANY, ..self }),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Choice {
    #[serde(flatten)]
    shape: Shape,
    form: Form,
    microseconds: f64,
}

/// The fastest forms on an adapter under a driver. The host keeps it, as JSON through serde, from run to run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Tuning {
    /// [`kernels`] when it was measured.
    kernels: u64,
    adapter: String,
    products: Vec<Choice>,
}

impl Tuning {
    /// Whether these very kernels were measured, on the adapter of this [`cache_name`](crate::gpu::AdapterSummary::cache_name).
    pub fn is_of(&self, adapter: &str) -> bool {
        self.adapter == adapter && self.kernels == kernels()
    }

    /// Without the choices that this device cannot run: what a host kept may be damaged, and browsers do not tell adapters
    /// apart.
    pub(crate) fn retain_possible(&mut self, gpu: &Gpu) {
        self.products.retain(|choice| Form::candidates(gpu, choice.shape).contains(&choice.form));
    }

    /// How many of these products it has a choice for.
    pub fn count(&self, products: impl IntoIterator<Item = Shape>) -> usize {
        let shapes: BTreeSet<Shape> = products.into_iter().filter_map(Shape::measured).collect();
        self.products.iter().filter(|choice| shapes.contains(&choice.shape)).count()
    }

    /// How many products were measured.
    pub fn len(&self) -> usize {
        self.products.len()
    }

    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.products.is_empty()
    }

    pub(crate) fn form(&self, shape: &Shape) -> Option<Form> {
        let shape = shape.measured()?;
        self.products.iter().find(|choice| choice.shape == shape).map(|choice| choice.form)
    }

    /// One without measurements.
    pub fn none(gpu: &Gpu) -> Self {
        Self { kernels: kernels(), adapter: gpu.adapter().cache_name.clone(), products: Vec::new() }
    }

    /// One that has every product of `shape` computed by `form`.
    fn forced(gpu: &Gpu, shape: Shape, form: Form) -> Self {
        Self { products: vec![Choice { shape, form, microseconds: 0.0 }], ..Self::none(gpu) }
    }
}

/// A hash of every kernel that computes products, and of the text of their files: measurements of others are forgotten.
fn kernels() -> u64 {
    static HASH: OnceLock<u64> = OnceLock::new();
    *HASH.get_or_init(|| {
        let mut hasher = DefaultHasher::new();
        let mut files = BTreeMap::new();
        for kernel in product_kernels() {
            // A kernel names its files; each is read once.
            kernel.hash(&mut hasher);
            files.extend(kernel.sources.iter().map(|source| (source.name, source.text)));
        }
        files.hash(&mut hasher);
        hasher.finish()
    })
}

/// A form's measurement, as it is made.
#[derive(Debug, Clone)]
pub struct Timing {
    /// The product.
    pub shape: Shape,
    /// The form's name.
    pub form: String,
    /// Whether it computes what the reference does.
    pub right: bool,
    /// Its time; nothing if it is wrong, or far slower than another.
    pub microseconds: Option<f64>,
}

/// Measures the forms that the device can run for each of these products, after holding each against the reference, and has
/// the fastest used from now on. What was measured before stays, but for forms that `options` do not allow. `on_timing` gives
/// `false` to stop.
///
/// # Errors
/// [`Error::Cancelled`]; those of the device. A form that is wrong on it is no error: it is left out.
pub async fn tune(
    gpu: &Gpu,
    products: impl IntoIterator<Item = Shape>,
    options: TuneOptions,
    mut on_timing: impl FnMut(&Timing) -> bool,
) -> Result<Tuning> {
    let mut tuning = gpu.tuning();
    if !tuning.is_of(&gpu.adapter().cache_name) {
        tuning = Tuning::none(gpu);
    }
    tuning.products.retain(|choice| options.allow(choice.form));
    let mut right = HashMap::new();
    let shapes: BTreeSet<Shape> = products.into_iter().filter_map(Shape::measured).collect();
    for shape in shapes {
        let measured = measure(gpu, shape, options, &mut right, &mut on_timing).await;
        gpu.set_tuning(tuning.clone());
        if let Some(choice) = measured? {
            tuning.products.retain(|old| old.shape != shape);
            tuning.products.push(choice);
        }
    }
    gpu.set_tuning(tuning.clone());
    Ok(tuning)
}

async fn measure(
    gpu: &Gpu,
    shape: Shape,
    options: TuneOptions,
    right: &mut HashMap<(Form, Precision), bool>,
    on_timing: &mut impl FnMut(&Timing) -> bool,
) -> Result<Option<Choice>> {
    let mut candidates = Form::candidates(gpu, shape);
    candidates.retain(|form| options.allow(*form));
    if candidates.len() < 2 {
        return Ok(None);
    }
    let weights = uncached_weights(gpu, shape)?;
    let m = if gpu.software_kernels() { shape.m.min(MANY_IN_SOFTWARE) } else { shape.m };
    let x = Tensor::zeros(gpu, &[m, shape.k], "x to measure")?;
    let mut best: Option<Choice> = None;
    for form in candidates {
        let key = (form, shape.precision);
        let is_right = match right.get(&key) {
            Some(is_right) => *is_right,
            None => *right.entry(key).or_insert(computes_right(gpu, shape, form).await?),
        };
        let mut microseconds = None;
        if is_right {
            gpu.set_tuning(Tuning::forced(gpu, shape, form));
            microseconds = time(gpu, &x, &weights, best.as_ref().map(|best| best.microseconds)).await?;
        }
        if !on_timing(&Timing { shape, form: format!("{form:?}"), right: is_right, microseconds }) {
            return Err(Error::Cancelled);
        }
        if let Some(microseconds) = microseconds
            && best.as_ref().is_none_or(|best| microseconds < best.microseconds)
        {
            best = Some(Choice { shape, form, microseconds });
        }
    }
    Ok(best)
}

/// Random weights of a shape: on hardware so many matrices that no cache holds them, to take turns as a model's do. (Of small ones a
/// model has no more, either.)
pub(crate) fn uncached_weights(gpu: &Gpu, shape: Shape) -> Result<Vec<Matrix>> {
    const BYTES: u64 = 256 << 20;
    const MOST: u64 = 64;
    let one = Matrix::bytes_for(shape.precision, shape.n, shape.k).max(1);
    let count = if gpu.adapter().is_software() { 1 } else { BYTES.div_ceil(one).min(MOST) };
    (0..count).map(|_| Matrix::random(gpu, shape.precision, shape.n, shape.k, 1, "weight to measure")).collect()
}

/// Holds a form against the reference, in a product at a small size that is no multiple of anything but four.
async fn computes_right(gpu: &Gpu, shape: Shape, form: Form) -> Result<bool> {
    let m = if shape.m == 1 { 1 } else { 70 };
    let case = Linear { m, n: 67, k: 132, precision: shape.precision, norm: true, ..Linear::default() };
    let small = Shape { precision: shape.precision, m, n: case.n, k: case.k };
    gpu.set_tuning(Tuning::forced(gpu, small.measured().unwrap_or(small), form));
    let values = match case.run(gpu).await {
        Ok(values) => values,
        Err(error @ (Error::DeviceLost(_) | Error::OutOfMemory { .. })) => return Err(error),
        // Such as a driver that does not take the kernel.
        Err(_) => return Ok(false),
    };
    let bound = match form.rounding() {
        Rounding::None => F32,
        Rounding::Half => HALF,
        Rounding::Bytes => BYTES,
    };
    Ok(compare(&case.name(), &values, &case.reference()).is_ok_and(|report| report.nmse <= bound))
}

/// Microseconds of a product; nothing if there is no hope of being faster than `best`.
async fn time(gpu: &Gpu, x: &Tensor, weights: &[Matrix], best: Option<f64>) -> Result<Option<f64>> {
    let mut turns = weights.iter().cycle();
    let mut record = |recorder: &mut Recorder| match turns.next() {
        Some(weight) => linear(recorder, x, weight, Epilogue::default()),
        None => Ok(x.clone()),
    };
    timing::time(gpu, 1, &mut record).await?; // makes the pipeline
    let first = timing::time(gpu, 1, &mut record).await?.min(timing::time(gpu, 1, &mut record).await?);
    if best.is_some_and(|best| microseconds(first) > HOPELESS * best.max(1000.0)) {
        return Ok(None);
    }
    let repeat = timing::repeats(gpu, TIME, MOST_REPEATS, &mut record).await?;
    let mut least = f64::INFINITY;
    for _ in 0..RUNS {
        least = least.min(microseconds(timing::time(gpu, repeat, &mut record).await?) / repeat as f64);
    }
    Ok(Some(least))
}

fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
