//! The kernels that can compute a product, and which of them does.

use serde::{Deserialize, Serialize};

use super::shape::MatmulShape;
use super::table::tuned;
use crate::gpu::{Capabilities, Gpu, MAX_GRID, grid_1d};
use crate::tensor::{GROUP_SIZE, Precision};

/// Up to this many rows of x are taken one by one (matvec); more go through the tiled kernel, which reads each weight
/// once for 64 rows.
pub(super) const MATVEC_ROWS: usize = 4;

/// Weights that stay in a core's cache: software adapters gain nothing from sharing their loads among more than a few rows,
/// and a kernel of few rows takes them a quarter of the time to compile.
const CACHED_WEIGHTS: usize = 1 << 19;

/// The kernels that compute a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MatmulKernel {
    /// Row by row, the invocations of a workgroup splitting k into fours.
    Matvec,
    /// The same with quantised weights, in whole blocks.
    BlockedMatvec(BlockedMatvec),
    /// Tiles in workgroup memory, in f16 if `half`.
    Tiled {
        /// In f16.
        half: bool,
    },
    /// Tiles of bytes in workgroup memory: x rounded to 8 bits in groups of 32, quantised weights as they are.
    Packed,
    /// On a GPU's matrix units: tiles in f16, products of matrices that a subgroup holds together, sums in f32.
    Cooperative(Cooperative),
    /// For software adapters without subgroups: this many rows at a time, without workgroup memory.
    Uniform(u32),
    /// For software adapters with subgroups of four: this many rows at a time, four or more, handed around in the subgroup.
    Subgroup4(u32),
    /// For software adapters with subgroups of eight: one row.
    MatvecSubgroup,
    /// For the same: this many rows at a time, two or more, handed around in the subgroup, and one or two blocks of columns.
    Subgroup {
        /// Rows of x.
        rows: u32,
        /// Blocks of columns: 1 or 2.
        blocks: u32,
    },
}

/// The sizes of [`MatmulKernel::BlockedMatvec`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BlockedMatvec {
    /// Sums are taken in subgroups first.
    pub subgroups: bool,
    /// Invocations of a workgroup.
    pub workgroup: u32,
    /// Blocks of four rows that a workgroup takes.
    pub blocks: u32,
}

/// The sizes of [`MatmulKernel::Cooperative`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Cooperative {
    /// Rows and columns of a matrix.
    pub size: u32,
    /// Rows of x, and of W, in a tile: 64, or 128 where there is workgroup memory enough.
    pub tile: u32,
    /// Invocations of a workgroup.
    pub workgroup: u32,
}

impl Cooperative {
    fn all() -> impl Iterator<Item = Self> {
        let sizes = [8, 16].into_iter().flat_map(|size| [64, 128].map(|tile| (size, tile)));
        sizes.flat_map(|(size, tile)| [32, 64, 128, 256].map(|workgroup| Self { size, tile, workgroup }))
    }

    fn runs_on(self, capabilities: &Capabilities) -> bool {
        let Capabilities { subgroup_min_size: least, subgroup_max_size: most, .. } = *capabilities;
        capabilities.cooperative_sizes.contains(&self.size)
            && (self.tile == 64 || capabilities.max_workgroup_bytes >= 32768)
            // Four subgroups of a size that the driver may choose, and a whole one whatever it chooses.
            && (least..=most).contains(&(self.workgroup / 4))
            && self.workgroup >= most
    }
}

impl BlockedMatvec {
    fn all() -> impl Iterator<Item = Self> {
        let sizes = [(32, 1), (32, 2), (128, 1), (128, 2)];
        let form = |subgroups| move |(workgroup, blocks)| Self { subgroups, workgroup, blocks };
        sizes.into_iter().map(form(false)).chain(sizes.into_iter().map(form(true)))
    }

    fn runs_on(self, capabilities: &Capabilities) -> bool {
        // Whole subgroups, all of one size.
        !self.subgroups || capabilities.subgroup_size().is_some_and(|size| self.workgroup.is_multiple_of(size))
    }

    /// What is likely to do well, without a measurement: as many invocations as there are groups of columns, and more rows
    /// where there are enough of them for many workgroups.
    fn likely(n: usize, k: usize) -> Self {
        let workgroup = if k.div_ceil(GROUP_SIZE) <= 48 { 32 } else { 128 };
        Self { subgroups: false, workgroup, blocks: if n >= 8192 { 2 } else { 1 } }
    }
}

/// What a kernel rounds before it multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// Nothing.
    None,
    /// Both factors, to f16.
    Half,
    /// x, to 8-bit integers in groups of 32 with a scale.
    Int8,
}

impl Rounding {
    /// The normalised mean square error that the rounding causes in a product of values drawn uniformly from -1 to 1, of mean
    /// square 1/3.
    pub fn nmse(self) -> f64 {
        match self {
            Self::None => 0.0,
            // Most of the error is that of values above 1/2, in steps of 2^-11: 2^-22 / 12, over 1/3, for each factor.
            Self::Half => 1.0 / f64::from(1 << 23),
            // Steps of a 127th of the largest of 32, which is at most three times the root mean square; the error is a step
            // over sqrt(12).
            Self::Int8 => (3.0f64 / 127.0).powi(2) / 12.0,
        }
    }
}

impl MatmulKernel {
    /// All of them.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let uniform = [1, 2, 4, 8, 16].map(Self::Uniform);
        let sizes = [(2, 1), (4, 1), (8, 1), (16, 1), (32, 1), (8, 2), (16, 2)];
        let subgroup = sizes.map(|(rows, blocks)| Self::Subgroup { rows, blocks });
        let subgroup4 = [4, 8].map(Self::Subgroup4);
        let tiled = [false, true].map(|half| Self::Tiled { half });
        let cooperative = Cooperative::all().map(Self::Cooperative);
        let blocks = BlockedMatvec::all().map(Self::BlockedMatvec);
        let hardware = [Self::Matvec, Self::Packed].into_iter().chain(tiled).chain(cooperative).chain(blocks);
        hardware.chain(uniform).chain([Self::MatvecSubgroup]).chain(subgroup).chain(subgroup4)
    }

    /// The kernel's name and sizes, as reports show them.
    pub fn name(self) -> String {
        match self {
            Self::Matvec => "matvec".to_owned(),
            Self::BlockedMatvec(BlockedMatvec { subgroups, workgroup, blocks }) => {
                let reduction = if subgroups { ", subgroups" } else { "" };
                format!("matvec_blocks (workgroup {workgroup}, blocks {blocks}{reduction})")
            }
            Self::Tiled { half } => format!("matmul ({})", if half { "f16" } else { "f32" }),
            Self::Packed => "matmul_packed".to_owned(),
            Self::Cooperative(Cooperative { size, tile, workgroup }) => {
                format!("matmul_cooperative (size {size}, tile {tile}, workgroup {workgroup})")
            }
            Self::Uniform(rows) => format!("matmul_uniform (rows {rows})"),
            Self::Subgroup4(rows) => format!("matmul_subgroup4 (rows {rows})"),
            Self::MatvecSubgroup => "matvec_subgroup".to_owned(),
            Self::Subgroup { rows, blocks } => format!("matmul_subgroup (rows {rows}, blocks {blocks})"),
        }
    }

    /// The form for a product: what was measured on this device to be the fastest, or else what is likely to be.
    pub(crate) fn choose(gpu: &Gpu, shape: MatmulShape) -> Self {
        tuned(gpu, shape).unwrap_or_else(|| Self::likely(gpu, shape))
    }

    /// The form for a product on a device that nothing is known of but its capabilities.
    fn likely(gpu: &Gpu, MatmulShape { m, n, k, precision }: MatmulShape) -> Self {
        let rows = m.next_power_of_two() as u32;
        match m {
            1 if gpu.software_subgroups() == Some(8) => Self::MatvecSubgroup,
            _ if gpu.software_subgroups() == Some(8) => {
                // What is loaded from x serves both blocks, what is loaded from W all rows: quantised weights are few bytes.
                let (most, blocks) = match precision.bits() {
                    _ if n * k <= CACHED_WEIGHTS => (8, 1),
                    Some(_) => (16, 2),
                    None => (32, 1),
                };
                Self::Subgroup { rows: rows.min(most), blocks: if rows < 8 { 1 } else { blocks } }
            }
            3.. if gpu.software_subgroups() == Some(4) => Self::Subgroup4(rows.min(8)),
            _ if gpu.software_kernels() => Self::Uniform(rows.min(16)),
            0..=MATVEC_ROWS if precision.bits().is_some() => Self::BlockedMatvec(BlockedMatvec::likely(n, k)),
            0..=MATVEC_ROWS => Self::Matvec,
            _ => Self::Tiled { half: false },
        }
    }

    /// The form for `m` pixels of a convolution's result, which no form takes one by one.
    pub(super) fn choose_for_map(gpu: &Gpu, shape: MatmulShape) -> Self {
        match Self::choose(gpu, MatmulShape { m: shape.m.max(2), ..shape }) {
            form if form.takes_many() => form,
            _ => Self::Tiled { half: false },
        }
    }

    /// Whether it takes several rows of x at a time.
    pub(crate) fn takes_many(self) -> bool {
        !matches!(self, Self::Matvec | Self::BlockedMatvec(_) | Self::MatvecSubgroup | Self::Uniform(1))
    }

    /// The most rows of x in one dispatch: as many as fit WebGPU's limit on a grid's dimensions.
    pub(super) fn max_rows(self) -> usize {
        self.tile()[0] * MAX_GRID as usize
    }

    /// Rows of x and rows of W that a workgroup takes.
    fn tile(self) -> [usize; 2] {
        match self {
            Self::Matvec => [1, 4],
            Self::BlockedMatvec(BlockedMatvec { blocks, .. }) => [1, 4 * blocks as usize],
            Self::MatvecSubgroup => [1, 64],
            Self::Tiled { .. } | Self::Packed => [64, 64],
            Self::Cooperative(Cooperative { tile, .. }) => [tile as usize; 2],
            Self::Uniform(rows) | Self::Subgroup4(rows) => [rows as usize, 256],
            Self::Subgroup { rows, blocks } => [rows as usize, 32 * blocks as usize],
        }
    }

    /// The forms that are worth a measurement: those that the device can run, of one row or of many.
    pub(crate) fn candidates(gpu: &Gpu, shape: MatmulShape) -> Vec<Self> {
        let capabilities = gpu.capabilities();
        let few = shape.m <= MATVEC_ROWS;
        // Those with tiles in workgroup memory.
        let tiles = !few && !gpu.software_kernels();
        let possible = |form: &Self| match *form {
            Self::Matvec => few,
            Self::BlockedMatvec(blocks) => few && blocks.runs_on(capabilities),
            Self::Tiled { half } => tiles && (!half || capabilities.shader_f16),
            Self::Packed => tiles,
            Self::Cooperative(form) => tiles && form.runs_on(capabilities),
            // Loads that are the same for a whole workgroup and no workgroup memory: for processors.
            Self::Uniform(rows) => gpu.software_kernels() && (rows == 1) == few && (few || rows >= 8),
            Self::Subgroup4(rows) => gpu.software_subgroups() == Some(4) && !few && rows >= 4,
            Self::MatvecSubgroup => gpu.software_subgroups() == Some(8) && shape.m == 1,
            Self::Subgroup { rows, .. } => gpu.software_subgroups() == Some(8) && !few && rows >= 8,
        };
        Self::all().filter(|form| form.takes(shape.precision)).filter(possible).collect()
    }

    /// Whether it can take a norm before the product along.
    pub(crate) fn fuses_norm(self) -> bool {
        matches!(self, Self::Matvec | Self::BlockedMatvec(_) | Self::MatvecSubgroup | Self::Subgroup { .. })
    }

    /// What it rounds, beside how factors are stored.
    pub fn rounding(self) -> Rounding {
        match self {
            Self::Packed => Rounding::Int8,
            Self::Tiled { half: true } | Self::Cooperative(_) => Rounding::Half,
            _ => Rounding::None,
        }
    }

    /// Whether it can read weights of this precision.
    pub(crate) fn takes(self, precision: Precision) -> bool {
        match self {
            Self::BlockedMatvec(_) | Self::Packed => precision.bits().is_some(),
            _ => true,
        }
    }

    pub(crate) fn grid(self, m: usize, n: usize) -> [u32; 3] {
        let tile = self.tile();
        let (rows, columns) = (m.div_ceil(tile[0]), n.div_ceil(tile[1]));
        match self {
            Self::Tiled { .. } | Self::Packed | Self::Cooperative(_) => [columns as u32, rows as u32, 1],
            _ => {
                let [x, y, _] = grid_1d(columns);
                [x, y, rows as u32]
            }
        }
    }
}
