//! The fastest kernel for each product on a device, as [`crate::tuning`] measured it. The host stores it from run to
//! run.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use super::kernel::{MATVEC_ROWS, MatmulKernel};
use super::quantized_rows::quantize_kernels;
use super::shader::all_kernels;
use super::shape::MatmulShape;
use crate::gpu::{Gpu, Lock};

/// The fastest kernels on an adapter under a driver. It is JSON through serde.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Stored", into = "Stored")]
pub struct Tuning {
    /// [`source_hash`] when it was measured.
    source_hash: u64,
    adapter: String,
    products: HashMap<MatmulShape, Choice>,
    /// Products that a time limit left to their default kernels.
    unmeasured: BTreeSet<MatmulShape>,
}

/// The kernel for a product, and its time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Choice {
    pub kernel: MatmulKernel,
    pub microseconds: f64,
}

/// A tuning as JSON has it: keys of objects are texts, so products are a list.
#[derive(Serialize, Deserialize)]
struct Stored {
    source_hash: u64,
    adapter: String,
    products: Vec<StoredChoice>,
    #[serde(default)]
    unmeasured: BTreeSet<MatmulShape>,
}

#[derive(Serialize, Deserialize)]
struct StoredChoice {
    #[serde(flatten)]
    shape: MatmulShape,
    #[serde(flatten)]
    choice: Choice,
}

impl From<Stored> for Tuning {
    fn from(stored: Stored) -> Self {
        let Stored { source_hash, adapter, products, unmeasured } = stored;
        Self {
            source_hash,
            adapter,
            products: products.into_iter().map(|stored| (stored.shape, stored.choice)).collect(),
            unmeasured,
        }
    }
}

impl From<Tuning> for Stored {
    fn from(tuning: Tuning) -> Self {
        let Tuning { source_hash, adapter, products, unmeasured } = tuning;
        let mut products: Vec<_> = products.into_iter().map(|(shape, choice)| StoredChoice { shape, choice }).collect();
        products.sort_by_key(|stored| stored.shape);
        Self { source_hash, adapter, products, unmeasured }
    }
}

impl Tuning {
    /// A tuning of this device without measurements.
    pub fn none(gpu: &Gpu) -> Self {
        Self { source_hash: source_hash(), adapter: gpu.adapter().cache_name.clone(), ..Self::default() }
    }

    /// Whether the present kernels were measured, on the adapter of this
    /// [`cache_name`](crate::gpu::AdapterSummary::cache_name).
    pub fn is_of(&self, adapter: &str) -> bool {
        self.adapter == adapter && self.source_hash == source_hash()
    }

    /// The number of products that were measured.
    pub fn len(&self) -> usize {
        self.products.len()
    }

    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.products.is_empty()
    }

    /// The number of measurements that hold for these products.
    pub fn count(&self, products: impl IntoIterator<Item = MatmulShape>) -> usize {
        let shapes: BTreeSet<_> = products.into_iter().map(MatmulShape::measured).collect();
        shapes.iter().filter(|shape| self.products.contains_key(shape)).count()
    }

    /// Whether each of these products, but for those of 2 to 16 rows, was measured, or left to its default kernel by
    /// [`Self::leave`].
    pub fn covers(&self, products: impl IntoIterator<Item = MatmulShape>) -> bool {
        let mut shapes = products.into_iter().filter(|shape| !shape.has_few_rows()).map(MatmulShape::measured);
        shapes.all(|shape| self.products.contains_key(&shape) || self.unmeasured.contains(&shape))
    }

    /// Leaves those of the products that were not measured to their default kernels:
    /// [`tune_within`](crate::tuning::tune_within) does not measure them.
    pub fn leave(&mut self, products: impl IntoIterator<Item = MatmulShape>) {
        let shapes = products.into_iter().map(MatmulShape::measured);
        self.unmeasured.extend(shapes.filter(|shape| !self.products.contains_key(shape)));
    }

    /// Has every product of `shape` computed by `kernel`, whatever was measured.
    #[doc(hidden)]
    pub fn force(&mut self, shape: MatmulShape, kernel: MatmulKernel) {
        self.insert(shape.measured(), Choice { kernel, microseconds: 0.0 });
    }

    /// The kernel for a product, if one was measured.
    #[doc(hidden)]
    pub fn kernel(&self, shape: MatmulShape) -> Option<MatmulKernel> {
        self.products.get(&shape.measured()).map(|choice| choice.kernel)
    }

    pub(crate) fn insert(&mut self, shape: MatmulShape, choice: Choice) {
        self.unmeasured.remove(&shape);
        self.products.insert(shape, choice);
    }

    pub(crate) fn retain(&mut self, mut keep: impl FnMut(MatmulKernel) -> bool) {
        self.products.retain(|_, choice| keep(choice.kernel));
    }
}

/// The device's tuning in use.
#[derive(Debug, Default)]
struct InUse(Lock<Tuning>);

/// Has kernels chosen by measurements of the same kernels, adapter and driver; those of others are ignored, as are
/// choices that this device cannot run (a stored file may be damaged, and browsers do not tell adapters apart).
pub fn set_tuning(gpu: &Gpu, mut tuning: Tuning) {
    if tuning.is_of(&gpu.adapter().cache_name) {
        tuning.products.retain(|shape, choice| MatmulKernel::candidates(gpu, *shape).contains(&choice.kernel));
        *gpu.extension::<InUse>().0.lock() = tuning;
    }
}

/// Changes the measurements in use. Those of another adapter or of other kernels are dropped before.
pub(crate) fn update_tuning(gpu: &Gpu, change: impl FnOnce(&mut Tuning)) {
    let in_use = gpu.extension::<InUse>();
    let mut tuning = in_use.0.lock();
    if !tuning.is_of(&gpu.adapter().cache_name) {
        *tuning = Tuning::none(gpu);
    }
    change(&mut tuning);
}

/// The measurements in use.
pub fn tuning(gpu: &Gpu) -> Tuning {
    gpu.extension::<InUse>().0.lock().clone()
}

/// The kernel that was measured to be the fastest for a product.
pub(super) fn tuned(gpu: &Gpu, shape: MatmulShape) -> Option<MatmulKernel> {
    let in_use = gpu.extension::<InUse>();
    let tuning = in_use.0.lock();
    // Software adapters compute 5 to 16 rows as they do many.
    let of_many = || tuning.kernel(shape.of_many()).filter(|_| gpu.is_software() && shape.m > MATVEC_ROWS);
    tuning.kernel(shape).or_else(of_many)
}

/// A hash of every kernel that computes products and of the text of its files: measurements of other kernels do not
/// count.
fn source_hash() -> u64 {
    static HASH: OnceLock<u64> = OnceLock::new();
    *HASH.get_or_init(|| {
        let mut hasher = DefaultHasher::new();
        let mut files = BTreeMap::new();
        for kernel in all_kernels().into_iter().chain(quantize_kernels()) {
            // A kernel hashes the names of its files; each text is hashed once.
            kernel.hash(&mut hasher);
            files.extend(kernel.sources.iter().map(|source| (source.name, source.text)));
        }
        files.hash(&mut hasher);
        hasher.finish()
    })
}
