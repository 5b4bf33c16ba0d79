//! Which kernel computes a product.

use super::kernel::{Cooperative, Device, FewRows, MATVEC_ROWS, MatmulKernel, MeasuredRows, Rounding, RowMatvec};
use super::shape::MatmulShape;
use super::table::tuned;
use crate::gpu::{Capabilities, Gpu};
use crate::ops::checked::Checked;
use crate::tensor::{Inputs, Precision};

/// Weights that stay in a core's cache. Software adapters gain nothing from sharing their loads among more than a few
/// rows, and a kernel for few rows compiles in a quarter of the time.
const CACHED_WEIGHTS: usize = 1 << 19;

/// Workgroups of 128 invocations that fill a large GPU. Measured on an H200 (132 multiprocessors), f32 and f16: a
/// product of 512 x 4096 x 1024 takes 0.22 ms in 256 tiles of 128 rows, and 0.176 ms in 512 tiles of 64 rows.
const FULL_DEVICE: usize = 512;

/// Tiles of 128 rows that fill a large GPU; with fewer, tiles of 64 share the work better.
const FULL_DEVICE_128: usize = 128;

/// Whether a product has enough tiles of 128 rows of x by 64 rows of W to fill a device: they read less than those of
/// 64 rows.
fn fills_with_large_tiles(m: usize, n: usize) -> bool {
    m > 64 && m.div_ceil(128) * n.div_ceil(64) >= FULL_DEVICE
}

impl MatmulKernel {
    /// The kernel for a product: the fastest that was measured on this device, or else the one that is likely to be.
    /// With wide inputs it rounds nothing; with inputs in f16 it may add in f16.
    pub(super) fn choose(gpu: &Gpu, shape: MatmulShape, inputs: Inputs) -> Self {
        Self::choose_among(gpu, shape, inputs, |_| true).unwrap_or_else(|| Self::likely(gpu, shape))
    }

    /// The first of the kernels for a product, the fastest first, that suits it.
    fn choose_among(gpu: &Gpu, shape: MatmulShape, inputs: Inputs, suits: impl Fn(&Self) -> bool) -> Option<Self> {
        let suits = |kernel: &Self| suits(kernel) && (inputs != Inputs::Wide || kernel.rounding() == Rounding::None);
        tuned(gpu, shape)
            .filter(&suits)
            .or_else(|| Self::for_few_rows(gpu, shape).filter(&suits))
            .or_else(|| Self::on_matrix_units(gpu, shape).filter(&suits))
            .or_else(|| Self::on_bytes(gpu, shape).filter(&suits))
            .or_else(|| if inputs == Inputs::F16 { Self::in_f16_sums(gpu, shape) } else { None })
            .or_else(|| Some(Self::likely(gpu, shape)).filter(&suits))
    }

    /// The kernel for a product that was not measured, whatever its inputs. It may round to f16 on matrix units, or to
    /// 8 bits.
    pub(crate) fn unmeasured(gpu: &Gpu, shape: MatmulShape) -> Self {
        Self::for_few_rows(gpu, shape)
            .or_else(|| Self::on_matrix_units(gpu, shape))
            .or_else(|| Self::on_bytes(gpu, shape))
            .unwrap_or_else(|| Self::likely(gpu, shape))
    }

    /// The kernel for an implicit GEMM of `shape.m` output positions: one for several rows.
    pub(super) fn choose_for_im2col(gpu: &Gpu, shape: MatmulShape, inputs: Inputs) -> Self {
        let shape = MatmulShape { m: shape.m.max(2), ..shape };
        let suits = |kernel: &Self| kernel.spec().takes_many() && !kernel.spec().reads_bytes();
        match Self::choose_among(gpu, shape, inputs, suits) {
            // With the addresses of more pixels Vega has registers for one subgroup of a SIMD instead of three.
            Some(Self::F16Sums { .. }) => Self::F16Sums { rows: 4 },
            Some(kernel) => kernel,
            None => Self::Tiled { half: false, columns: 4 },
        }
    }

    /// The kernel that reads weights once for 2 to 16 rows, on a GPU. Up to four rows of quantised weights
    /// [`Self::RowMatvec`] reads as few bytes with fewer instructions. A tile of 64 rows, of whatever kind, takes as
    /// many bytes as this, and four times the arithmetic at least.
    fn for_few_rows(gpu: &Gpu, shape: MatmulShape) -> Option<Self> {
        let reads_once = shape.m <= MATVEC_ROWS && shape.precision.bits().is_some();
        if gpu.is_software() || !shape.has_few_rows() || reads_once {
            return None;
        }
        Some(Self::Few(FewRows::likely(shape.m)))
    }

    /// The kernel for a product that may add in f16, if the GPU has packed f16 arithmetic and passed the check.
    fn in_f16_sums(gpu: &Gpu, MatmulShape { m, n, precision, .. }: MatmulShape) -> Option<Self> {
        if m <= MATVEC_ROWS
            || precision == Precision::F32
            || !gpu.capabilities().packed_f16
            || !Checked::F16Sums.passed(gpu)
        {
            return None;
        }
        Some(Self::F16Sums { rows: if fills_with_large_tiles(m, n) { 8 } else { 4 } })
    }

    /// The kernel for a product on a GPU's matrix units, if it has any that are worth it: f32 weights are exact, and
    /// few rows are multiplied while their weights arrive.
    fn on_matrix_units(gpu: &Gpu, MatmulShape { m, n, precision, .. }: MatmulShape) -> Option<Self> {
        if m <= MATVEC_ROWS || precision == Precision::F32 || !Checked::MatrixUnits.passed(gpu) {
            return None;
        }
        let tile = if m.div_ceil(128) * n.div_ceil(128) >= FULL_DEVICE_128 { 128 } else { 64 };
        Self::default_on_matrix_units(gpu).into_iter().rfind(|sizes| sizes.tile <= tile).map(Self::Cooperative)
    }

    /// The kernel that multiplies bytes, for a product of several rows with quantised weights on a GPU that has
    /// instructions for that and passed the check.
    fn on_bytes(gpu: &Gpu, MatmulShape { m, n, precision, .. }: MatmulShape) -> Option<Self> {
        if m <= MATVEC_ROWS || precision.bits().is_none() || !Checked::NativeDots.passed(gpu) {
            return None;
        }
        let is_large = fills_with_large_tiles(m, n);
        let sizes = Self::default_on_bytes(gpu);
        sizes.into_iter().rfind(|kernel| is_large || *kernel == Self::Packed { columns: 4 })
    }

    /// The kernels that multiply bytes without a measurement, the one for large products last.
    pub(crate) fn default_on_bytes(gpu: &Gpu) -> Vec<Self> {
        let capabilities = gpu.capabilities();
        if gpu.is_software() || !gpu.allows_int8() || !capabilities.native_dots {
            return Vec::new();
        }
        // Intel's GPUs, which have subgroups of 8 or 16, have no registers for 8 columns.
        let large = (capabilities.subgroup_min_size >= 32).then_some(8);
        [Some(4), large].into_iter().flatten().map(|columns| Self::Packed { columns }).collect()
    }

    /// The kernels for matrix units that run without a measurement: the best one of each tile, the larger tile last.
    pub(crate) fn default_on_matrix_units(gpu: &Gpu) -> Vec<Cooperative> {
        let runs = |sizes: &Cooperative| Device::Matrices(*sizes).includes(gpu);
        [64, 128]
            .into_iter()
            .filter_map(|tile| {
                let candidates = Cooperative::all().filter(|sizes| sizes.tile == tile).filter(runs);
                candidates.max_by_key(|sizes| (sizes.size, sizes.lanes, sizes.step))
            })
            .collect()
    }

    /// The kernel for a product on a device of which nothing is known but its capabilities.
    fn likely(gpu: &Gpu, MatmulShape { m, n, k, precision }: MatmulShape) -> Self {
        let rows = m.next_power_of_two() as u32;
        match m {
            1 if gpu.software_subgroups() == Some(8) => Self::MatvecSubgroup,
            _ if gpu.software_subgroups() == Some(8) => {
                // Both blocks share the loads of x, all rows those of W. Quantised weights are few bytes.
                let (most, blocks) = match precision.bits() {
                    _ if n * k <= CACHED_WEIGHTS => (8, 1),
                    Some(_) => (16, 2),
                    None => (32, 1),
                };
                Self::Subgroup { rows: rows.min(most), blocks: if rows < 8 { 1 } else { blocks } }
            }
            3.. if gpu.software_subgroups() == Some(4) => Self::Subgroup4(rows.min(8)),
            _ if gpu.is_software() => Self::Uniform(rows.min(16)),
            0..=MATVEC_ROWS if precision.bits().is_some() => Self::RowMatvec(RowMatvec::likely(m, n, precision)),
            0..=MATVEC_ROWS => Self::Matvec,
            _ if fills_with_large_tiles(m, n) => Self::Tiled { half: false, columns: 8 },
            _ => Self::Tiled { half: false, columns: 4 },
        }
    }

    /// The few [`candidates`](Self::candidates) that are close to the default on GPUs of one kind or another: the same
    /// kernel in the next sizes. The default is the first.
    pub(crate) fn short_list(gpu: &Gpu, shape: MatmulShape) -> Vec<Self> {
        let default = Self::unmeasured(gpu, shape);
        let near = |a: u32, b: u32| a <= 2 * b && b <= 2 * a;
        let is_near = |kernel: &Self| match (default, *kernel) {
            (Self::RowMatvec(a), Self::RowMatvec(b)) => near(a.lanes, b.lanes) && near(a.owned, b.owned),
            (Self::Tiled { .. }, Self::Tiled { .. }) | (Self::Packed { .. }, Self::Packed { .. }) => true,
            // In case that the bytes are slower than expected.
            (Self::Packed { .. }, kernel) if kernel == Self::likely(gpu, shape) => true,
            (Self::Cooperative(a), Self::Cooperative(b)) => (a.size, a.lanes) == (b.size, b.lanes),
            _ => false,
        };
        let others = Self::candidates(gpu, shape).into_iter().filter(|kernel| *kernel != default && is_near(kernel));
        std::iter::once(default).chain(others).collect()
    }

    /// The kernels to measure for a matmul of this shape on this device.
    pub fn candidates(gpu: &Gpu, shape: MatmulShape) -> Vec<Self> {
        let few = shape.m <= MATVEC_ROWS;
        Self::all()
            .filter(|kernel| {
                let spec = kernel.spec();
                let measured = match spec.measured {
                    MeasuredRows::One => shape.m == 1,
                    MeasuredRows::Few => few,
                    MeasuredRows::UpTo(rows) => shape.has_few_rows() && shape.m.next_power_of_two() == rows as usize,
                    MeasuredRows::Many => !few,
                    MeasuredRows::Never => false,
                };
                let rounds = spec.rounding != Rounding::Int8 || gpu.allows_int8();
                measured && rounds && spec.takes(shape.precision) && spec.device.includes(gpu)
            })
            .collect()
    }
}

impl Device {
    fn includes(self, gpu: &Gpu) -> bool {
        let capabilities = gpu.capabilities();
        match self {
            Self::Any => true,
            Self::Hardware => !gpu.is_software(),
            Self::HardwareF16 => !gpu.is_software() && capabilities.shader_f16,
            Self::Matrices(sizes) => !gpu.is_software() && sizes.run_on(capabilities),
            Self::Software => gpu.is_software(),
            Self::SoftwareSubgroups(lanes) => gpu.software_subgroups() == Some(lanes),
        }
    }
}

impl Cooperative {
    fn run_on(self, capabilities: &Capabilities) -> bool {
        let Capabilities { subgroup_min_size: least, subgroup_max_size: most, .. } = *capabilities;
        capabilities.cooperative_sizes.contains(&self.size)
            && self.workgroup_bytes() <= capabilities.max_workgroup_bytes
            && self.workgroup() <= capabilities.max_workgroup_invocations
            // A size that the driver may choose; with another one, subgroups compute several parts in turn.
            && (least..=most).contains(&self.lanes)
    }
}

impl RowMatvec {
    /// The sizes that do well on an H200: more rows of W an invocation share x where there are enough of them for many
    /// workgroups.
    fn likely(m: usize, n: usize, precision: Precision) -> Self {
        let rows = m.next_power_of_two() as u32;
        match n {
            8192.. if rows == 1 && precision != Precision::Q8 => Self { rows, lanes: 8, owned: 4, workgroup: 128 },
            8192.. => Self { rows, lanes: 16, owned: 2, workgroup: 256 },
            _ => Self { rows, lanes: if rows < 4 { 8 } else { 16 }, owned: 2, workgroup: 256 },
        }
    }
}

impl FewRows {
    /// The sizes for `m` rows of x.
    fn likely(m: usize) -> Self {
        let rows = m.next_power_of_two() as u32;
        Self { rows, lanes: 16, owned: 2, workgroup: if rows < 16 { 256 } else { 128 } }
    }
}
