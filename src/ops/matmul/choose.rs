//! Which kernel computes a product.

use super::kernel::{BlockedMatvec, Cooperative, Device, MATVEC_ROWS, MatmulKernel, MeasuredRows};
use super::shape::MatmulShape;
use super::table::tuned;
use crate::gpu::{Capabilities, Gpu};
use crate::tensor::GROUP_SIZE;

/// Weights that stay in a core's cache. Software adapters gain nothing from sharing their loads among more than a few
/// rows, and a kernel for few rows compiles in a quarter of the time.
const CACHED_WEIGHTS: usize = 1 << 19;

/// Workgroups of 128 invocations that fill a large GPU. Measured on an H200 (132 multiprocessors), f32 and f16: a
/// product of 512 x 4096 x 1024 takes 0.22 ms in 256 tiles of 128 rows, and 0.176 ms in 512 tiles of 64 rows.
const FULL_DEVICE: usize = 512;

impl MatmulKernel {
    /// The kernel for a product: the fastest that was measured on this device, or else the one that is likely to be.
    pub(super) fn choose(gpu: &Gpu, shape: MatmulShape) -> Self {
        tuned(gpu, shape).unwrap_or_else(|| Self::likely(gpu, shape))
    }

    /// The kernel for an implicit GEMM of `shape.m` output positions: one for several rows.
    pub(super) fn choose_for_im2col(gpu: &Gpu, shape: MatmulShape) -> Self {
        match Self::choose(gpu, MatmulShape { m: shape.m.max(2), ..shape }) {
            kernel if kernel.spec().takes_many() => kernel,
            _ => Self::Tiled { half: false, columns: 4 },
        }
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
            0..=MATVEC_ROWS if precision.bits().is_some() => Self::BlockedMatvec(BlockedMatvec::likely(n, k)),
            0..=MATVEC_ROWS => Self::Matvec,
            // Larger tiles read less, but there must be enough of them to fill a device.
            _ if m > 64 && m.div_ceil(128) * n.div_ceil(64) >= FULL_DEVICE => Self::Tiled { half: false, columns: 8 },
            _ => Self::Tiled { half: false, columns: 4 },
        }
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
                    MeasuredRows::Many => !few,
                    MeasuredRows::Never => false,
                };
                measured && spec.takes(shape.precision) && spec.device.includes(gpu)
            })
            .collect()
    }
}

impl Device {
    fn includes(self, gpu: &Gpu) -> bool {
        let capabilities = gpu.capabilities();
        match self {
            Self::Any => true,
            Self::Subgroups(workgroup) => {
                capabilities.subgroup_size().is_some_and(|size| workgroup.is_multiple_of(size))
            }
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
            && (self.tile == 64 || capabilities.max_workgroup_bytes >= 32768)
            // Four subgroups of a size that the driver may choose, and a whole one whatever it chooses.
            && (least..=most).contains(&(self.workgroup / 4))
            && self.workgroup >= most
    }
}

impl BlockedMatvec {
    /// The sizes that are likely to do well: as many invocations as there are groups of columns, and more rows where
    /// there are enough of them for many workgroups.
    fn likely(n: usize, k: usize) -> Self {
        let workgroup = if k.div_ceil(GROUP_SIZE) <= 48 { 32 } else { 128 };
        Self { subgroups: false, workgroup, blocks: if n >= 8192 { 2 } else { 1 } }
    }
}
