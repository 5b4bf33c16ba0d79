//! The kernels that compute matrix products. Each kernel is described by its [`KernelSpec`].

use serde::{Deserialize, Serialize};

use crate::gpu::{MAX_GRID, Source, grid_1d, wgsl};
use crate::tensor::Precision;

/// Up to this many rows of x go through the matvec kernels, more through kernels that use each weight for many rows.
pub(super) const MATVEC_ROWS: usize = 4;

/// The most rows of x of [`MatmulKernel::Few`].
pub(super) const FEW_ROWS: usize = 16;

/// Columns that [`MatmulKernel::F16Sums`] adds in f16.
const F16_STEP: u32 = 32;

/// A kernel that computes a product y = x W^T, with its sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MatmulKernel {
    /// Row by row: the invocations of a workgroup split k into fours.
    Matvec,
    /// For few rows of x and quantised weights: neighbouring invocations compute neighbouring rows of W; x in workgroup
    /// memory.
    RowMatvec(RowMatvec),
    /// For 2 to 16 rows of x: weights are read and unpacked once for all of them; x in workgroup memory.
    Few(FewRows),
    /// Tiles in workgroup memory.
    Tiled {
        /// In f16.
        half: bool,
        /// Columns of the 8 rows of outputs that an invocation computes: 4, or 8 for large products.
        columns: u32,
    },
    /// Tiles of bytes in workgroup memory: x is rounded to 8 bits in groups of 32, quantised weights are multiplied as
    /// integers.
    Packed {
        /// Columns of the 8 rows of outputs that an invocation computes: 4, or 8 for large products.
        columns: u32,
    },
    /// Matrix units: tiles in f16, multiplied as matrices that a subgroup holds together, with sums in f32.
    Cooperative(Cooperative),
    /// Tiles in f16 in workgroup memory, multiplied and added in f16, for GPUs with packed f16 arithmetic. After each
    /// 32 columns the sums are added to sums in f32.
    F16Sums {
        /// Rows of the 8 columns of outputs that an invocation computes: 4, or 8 for large products.
        rows: u32,
    },
    /// For software adapters without subgroups: this many rows at a time, without workgroup memory.
    Uniform(u32),
    /// For software adapters with subgroups of four: this many rows at a time (4 or more), shared by shuffles.
    Subgroup4(u32),
    /// For software adapters with subgroups of eight: one row.
    MatvecSubgroup,
    /// For software adapters with subgroups of eight: several rows, shared by shuffles.
    Subgroup {
        /// Rows of x at a time: 2 or more.
        rows: u32,
        /// Blocks of columns at a time: 1 or 2.
        blocks: u32,
    },
}

/// The sizes of [`MatmulKernel::RowMatvec`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RowMatvec {
    /// Rows of x: 1, 2 or 4.
    pub rows: u32,
    /// Invocations that compute neighbouring rows of W.
    pub lanes: u32,
    /// Rows of W of an invocation: up to 4.
    pub owned: u32,
    /// Invocations of a workgroup.
    pub workgroup: u32,
}

/// The sizes of [`MatmulKernel::Few`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FewRows {
    /// Rows of x: 2, 4, 8 or 16.
    pub rows: u32,
    /// Invocations that compute neighbouring rows of W.
    pub lanes: u32,
    /// Rows of W of an invocation: 2 or 4.
    pub owned: u32,
    /// Invocations of a workgroup: at least 8 for each row of x.
    pub workgroup: u32,
}

/// The sizes of [`MatmulKernel::Cooperative`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Cooperative {
    /// Rows and columns of a matrix: 8 or 16.
    pub size: u32,
    /// Rows of x, and of W, in a tile: 64 or 128.
    pub tile: u32,
    /// Columns staged at a time: 32 or 64.
    pub step: u32,
    /// Parts of a tile, one for each subgroup: 4 or 8.
    pub parts: u32,
    /// Invocations of a subgroup.
    pub lanes: u32,
}

impl Cooperative {
    pub(super) fn workgroup(self) -> u32 {
        self.parts * self.lanes
    }

    /// Rows of x and of W in a part.
    fn part(self) -> [u32; 2] {
        [self.tile / 2, 2 * self.tile / self.parts]
    }

    /// Workgroup memory: both tiles in f16 with eight more columns, and a matrix of each part in f32.
    pub fn workgroup_bytes(self) -> u32 {
        2 * self.tile * (self.step + 8) * 2 + self.parts * self.size * self.size * 4
    }

    pub(super) fn all() -> impl Iterator<Item = Self> {
        [(8, 8), (8, 32), (16, 32), (16, 64)].into_iter().flat_map(|(size, lanes)| {
            [64, 128].into_iter().flat_map(move |tile| {
                // A part of 64 x 64 is for subgroups of 64: fewer invocations have no registers for it.
                let parts = if tile == 128 && lanes < 64 { 8 } else { 4 };
                [32, 64].map(|step| Self { size, tile, step, parts, lanes })
            })
        })
    }
}

/// What a kernel rounds before it multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// Nothing.
    None,
    /// Both factors, to f16.
    F16,
    /// Both factors, and the running sum over 32 columns, to f16.
    F16Sums,
    /// x, to 8-bit integers in groups of 32 with a scale.
    Int8,
}

impl Rounding {
    /// The normalised mean square error that the rounding causes in a product of values drawn uniformly from -1 to 1,
    /// whose mean square is 1/3.
    pub fn nmse(self) -> f64 {
        match self {
            Self::None => 0.0,
            // Most of the error is that of values above 1/2, in steps of 2^-11: 2^-22 / 12, over 1/3, for each factor.
            Self::F16 => 1.0 / f64::from(1 << 23),
            // Rounding the sums costs at most a fifth of that for each column. Measured: 7.4e-7 for 32 columns (16:
            // 4.3e-7, 8: 2.7e-7), for values from a normal distribution 8.2e-7. The error of a result is at most
            // (F16_STEP + 2) 2^-11 times the sum of its products' magnitudes.
            Self::F16Sums => Self::F16.nmse() * (1.0 + f64::from(F16_STEP) / 5.0),
            // Steps of a 127th of the largest of 32, which is at most three times the root mean square. The error of a
            // step is a step over sqrt(12).
            Self::Int8 => (3.0f64 / 127.0).powi(2) / 12.0,
        }
    }
}

/// How a kernel reads weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WeightReader {
    /// Four columns of a row.
    Vec4,
    /// 32 columns of four rows.
    Block,
    /// 32 columns of a row.
    Row,
    /// The packed bytes of 32 columns of a row.
    Bytes,
    /// Eight columns of a row.
    Run,
}

/// How workgroups are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Grid {
    /// x: tiles of W's rows; y: tiles of x's rows.
    Tiles,
    /// x and y: tiles of W's rows; z: tiles of x's rows.
    Rows,
}

/// Row counts for which `mgm tune` measures a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MeasuredRows {
    /// One.
    One,
    /// Up to [`MATVEC_ROWS`].
    Few,
    /// Two or more, up to this power of two and more than half of it.
    UpTo(u32),
    /// More than [`MATVEC_ROWS`].
    Many,
    /// None: never measured.
    Never,
}

/// The devices that can run a kernel, or gain from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Device {
    /// Any.
    Any,
    /// GPUs.
    Hardware,
    /// GPUs with `shader-f16`.
    HardwareF16,
    /// GPUs with cooperative matrices of this size.
    Matrices(Cooperative),
    /// Software adapters.
    Software,
    /// Software adapters with subgroups of this many lanes.
    SoftwareSubgroups(u32),
}

/// A size of a kernel, as its shader sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Constant {
    /// The value of an `override` constant.
    Override(&'static str, u32),
    /// A `const` declaration, for lengths of arrays.
    Const(&'static str, u32),
}

/// The properties of a kernel.
pub(super) struct KernelSpec {
    /// The entry point of its shader.
    pub name: &'static str,
    /// What tells it from another kernel with the same entry point and constants, in reports.
    pub note: Option<&'static str>,
    /// The file of its shader.
    pub file: Source,
    /// Files before it, after the reader of weights.
    pub parts: &'static [Source],
    pub weights: WeightReader,
    pub constants: [Option<Constant>; 6],
    /// Rows of x and rows of W of a workgroup.
    pub tile: [usize; 2],
    grid: Grid,
    /// Whether it normalises x while it reads it.
    pub fuses_norm: bool,
    /// Whether it reads quantised weights only.
    quantized_only: bool,
    pub rounding: Rounding,
    pub measured: MeasuredRows,
    pub device: Device,
}

impl MatmulKernel {
    /// Every kernel with every size.
    #[doc(hidden)]
    pub fn all() -> impl Iterator<Item = Self> {
        let rows = [
            (1, 8, 2, 256),
            (1, 8, 4, 128),
            (1, 16, 1, 256),
            (1, 16, 2, 256),
            (1, 32, 2, 128),
            (2, 8, 2, 256),
            (2, 16, 2, 256),
            (4, 16, 2, 256),
        ]
        .map(|(rows, lanes, owned, workgroup)| RowMatvec { rows, lanes, owned, workgroup });
        let few =
            [(2, 16, 2, 256), (4, 16, 2, 256), (8, 16, 2, 256), (8, 16, 4, 256), (16, 16, 2, 128), (16, 16, 4, 128)]
                .map(|(rows, lanes, owned, workgroup)| FewRows { rows, lanes, owned, workgroup });
        let subgroup = [(2, 1), (4, 1), (8, 1), (16, 1), (32, 1), (8, 2), (16, 2)];
        let tiled = [4, 8].into_iter().flat_map(|columns| [false, true].map(|half| Self::Tiled { half, columns }));
        [Self::Matvec, Self::MatvecSubgroup]
            .into_iter()
            .chain(tiled)
            .chain([4, 8].map(|columns| Self::Packed { columns }))
            .chain(rows.into_iter().map(Self::RowMatvec))
            .chain(few.into_iter().map(Self::Few))
            .chain(Cooperative::all().map(Self::Cooperative))
            .chain([4, 8].map(|rows| Self::F16Sums { rows }))
            .chain([1, 2, 4, 8, 16].map(Self::Uniform))
            .chain([4, 8].map(Self::Subgroup4))
            .chain(subgroup.map(|(rows, blocks)| Self::Subgroup { rows, blocks }))
    }

    /// What the kernel is and where it runs.
    pub(super) fn spec(self) -> KernelSpec {
        use Constant::{Const, Override};
        // What most kernels for many rows have in common.
        let tiled = KernelSpec {
            name: "matmul",
            note: None,
            file: wgsl!("matmul/matmul_tiled.wgsl"),
            parts: &[],
            weights: WeightReader::Vec4,
            constants: [None; 6],
            tile: [64, 64],
            grid: Grid::Tiles,
            fuses_norm: false,
            quantized_only: false,
            rounding: Rounding::None,
            measured: MeasuredRows::Many,
            device: Device::Hardware,
        };
        match self {
            Self::Matvec => KernelSpec {
                name: "matvec",
                file: wgsl!("matmul/matvec.wgsl"),
                parts: &[wgsl!("common/reduce_workgroup.wgsl")],
                tile: [1, 4],
                grid: Grid::Rows,
                fuses_norm: true,
                measured: MeasuredRows::Few,
                device: Device::Any,
                ..tiled
            },
            Self::RowMatvec(RowMatvec { lanes, owned, rows, workgroup }) => KernelSpec {
                name: "matvec_rows",
                file: wgsl!("matmul/matvec_rows.wgsl"),
                parts: &[wgsl!("common/reduce_workgroup.wgsl")],
                weights: WeightReader::Row,
                constants: [
                    Some(Override("WORKGROUP", workgroup)),
                    Some(Const("LANES", lanes)),
                    Some(Const("OWNED", owned)),
                    Some(Const("INPUT_ROWS", rows)),
                    None,
                    None,
                ],
                tile: [rows as usize, (lanes * owned) as usize],
                grid: Grid::Rows,
                fuses_norm: true,
                quantized_only: true,
                measured: if rows == 1 { MeasuredRows::One } else { MeasuredRows::UpTo(rows) },
                device: Device::Hardware,
                ..tiled
            },
            Self::Few(FewRows { rows, lanes, owned, workgroup }) => KernelSpec {
                name: "matmul_few",
                file: wgsl!("matmul/matmul_few.wgsl"),
                weights: WeightReader::Row,
                constants: [
                    Some(Const("WORKGROUP", workgroup)),
                    Some(Const("LANES", lanes)),
                    Some(Const("OWNED", owned)),
                    Some(Const("INPUT_ROWS", rows)),
                    None,
                    None,
                ],
                tile: [rows as usize, (lanes * owned) as usize],
                grid: Grid::Rows,
                fuses_norm: true,
                measured: MeasuredRows::UpTo(rows),
                ..tiled
            },
            Self::Tiled { half, columns } => KernelSpec {
                note: half.then_some("f16"),
                parts: if half {
                    &[wgsl!("matmul/tiles_64.wgsl"), wgsl!("matmul/stage_f16.wgsl")]
                } else {
                    &[wgsl!("matmul/tiles_64.wgsl"), wgsl!("matmul/stage_f32.wgsl")]
                },
                constants: [Some(Const("COLUMNS", columns)), None, None, None, None, None],
                tile: [16 * columns as usize, 64],
                rounding: if half { Rounding::F16 } else { Rounding::None },
                device: if half { Device::HardwareF16 } else { Device::Hardware },
                ..tiled
            },
            Self::Packed { columns } => KernelSpec {
                name: "matmul_packed",
                file: wgsl!("matmul/matmul_packed.wgsl"),
                parts: &[wgsl!("matmul/tiles_64.wgsl")],
                constants: [Some(Const("COLUMNS", columns)), None, None, None, None, None],
                tile: [16 * columns as usize, 64],
                weights: WeightReader::Bytes,
                // `quantize_rows` applies the norm before it rounds.
                fuses_norm: true,
                quantized_only: true,
                rounding: Rounding::Int8,
                ..tiled
            },
            Self::Cooperative(sizes @ Cooperative { size, tile, step, .. }) => KernelSpec {
                name: "matmul_cooperative",
                file: wgsl!("matmul/matmul_cooperative.wgsl"),
                parts: match size {
                    8 => &[wgsl!("matmul/stage_f16.wgsl"), wgsl!("matmul/cooperative_8.wgsl")],
                    _ => &[wgsl!("matmul/stage_f16.wgsl"), wgsl!("matmul/cooperative_16.wgsl")],
                },
                weights: WeightReader::Run,
                constants: [
                    Some(Const("TILE", tile)),
                    Some(Const("STEP", step)),
                    Some(Const("SUB_M", sizes.part()[0])),
                    Some(Const("SUB_N", sizes.part()[1])),
                    Some(Const("WORKGROUP", sizes.workgroup())),
                    None,
                ],
                tile: [tile as usize; 2],
                rounding: Rounding::F16,
                device: Device::Matrices(sizes),
                ..tiled
            },
            Self::F16Sums { rows } => KernelSpec {
                name: "matmul_f16",
                file: wgsl!("matmul/matmul_f16.wgsl"),
                constants: [Some(Const("ROWS", rows)), Some(Const("STEP", F16_STEP)), None, None, None, None],
                tile: [16 * rows as usize, 64],
                rounding: Rounding::F16Sums,
                device: Device::HardwareF16,
                ..tiled
            },
            // Loads that are the same for a whole workgroup, and no workgroup memory.
            Self::Uniform(rows) => KernelSpec {
                name: "matmul_uniform",
                file: wgsl!("matmul/matmul_uniform.wgsl"),
                constants: [Some(Override("ROWS", rows)), None, None, None, None, None],
                tile: [rows as usize, 256],
                grid: Grid::Rows,
                measured: match rows {
                    1 => MeasuredRows::Few,
                    8.. => MeasuredRows::Many,
                    _ => MeasuredRows::Never,
                },
                device: Device::Software,
                ..tiled
            },
            Self::Subgroup4(rows) => KernelSpec {
                name: "matmul_subgroup4",
                file: wgsl!("matmul/matmul_subgroup4.wgsl"),
                constants: [Some(Override("ROWS", rows)), None, None, None, None, None],
                tile: [rows as usize, 256],
                grid: Grid::Rows,
                device: Device::SoftwareSubgroups(4),
                ..tiled
            },
            Self::MatvecSubgroup => KernelSpec {
                name: "matvec_subgroup",
                file: wgsl!("matmul/matvec_subgroup.wgsl"),
                weights: WeightReader::Block,
                tile: [1, 64],
                grid: Grid::Rows,
                fuses_norm: true,
                measured: MeasuredRows::One,
                device: Device::SoftwareSubgroups(8),
                ..tiled
            },
            Self::Subgroup { rows, blocks } => KernelSpec {
                name: "matmul_subgroup",
                file: wgsl!("matmul/matmul_subgroup.wgsl"),
                weights: WeightReader::Block,
                constants: [Some(Const("ROWS", rows)), Some(Const("BLOCKS", blocks)), None, None, None, None],
                tile: [rows as usize, 32 * blocks as usize],
                grid: Grid::Rows,
                fuses_norm: true,
                measured: if rows >= 8 { MeasuredRows::Many } else { MeasuredRows::Never },
                device: Device::SoftwareSubgroups(8),
                ..tiled
            },
        }
    }

    /// The kernel's name and sizes, as reports show them.
    pub fn name(self) -> String {
        let spec = self.spec();
        let sizes = spec.constants.into_iter().flatten().map(|constant| match constant {
            Constant::Override(name, value) | Constant::Const(name, value) => {
                format!("{} {value}", name.to_lowercase())
            }
        });
        let notes: Vec<_> = sizes.chain(spec.note.map(str::to_owned)).collect();
        if notes.is_empty() { spec.name.to_owned() } else { format!("{} ({})", spec.name, notes.join(", ")) }
    }

    /// What it rounds besides how factors are stored.
    pub fn rounding(self) -> Rounding {
        self.spec().rounding
    }
}

impl KernelSpec {
    /// Whether it computes several rows of x at a time.
    pub(super) fn takes_many(&self) -> bool {
        self.tile[0] > 1
    }

    /// The most rows of x in one dispatch: WebGPU limits each dimension of a grid.
    pub(super) fn max_rows(&self) -> usize {
        self.tile[0] * MAX_GRID as usize
    }

    /// Whether it reads rows of x that were rounded to bytes before, and so no maps.
    pub(super) fn reads_bytes(&self) -> bool {
        self.weights == WeightReader::Bytes
    }

    /// Whether it can read weights of this precision.
    pub(super) fn takes(&self, precision: Precision) -> bool {
        !self.quantized_only || precision.bits().is_some()
    }

    /// The workgroups for a product of `m` rows of x and `n` rows of W.
    pub(super) fn grid(&self, m: usize, n: usize) -> [u32; 3] {
        let (rows, columns) = (m.div_ceil(self.tile[0]), n.div_ceil(self.tile[1]));
        match self.grid {
            Grid::Tiles => [columns as u32, rows as u32, 1],
            Grid::Rows => {
                let [x, y, _] = grid_1d(columns);
                [x, y, rows as u32]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::MatmulKernel::{self, *};

    /// Checks that `all()` lists a kernel of each of these variants.
    macro_rules! assert_lists_all_of {
        ($($variant:pat),+) => {{
            // Without `_`: a new variant does not compile until it is in the list, and then must be in `all()`.
            let variant = |kernel: MatmulKernel| match kernel {
                $($variant => stringify!($variant)),+
            };
            let listed: BTreeSet<_> = MatmulKernel::all().map(variant).collect();
            assert_eq!(listed, BTreeSet::from([$(stringify!($variant)),+]));
        }};
    }

    #[test]
    fn all_lists_every_variant() {
        assert_lists_all_of!(
            Matvec,
            RowMatvec(_),
            Few(_),
            Tiled { half: false, .. },
            Tiled { half: true, .. },
            Packed { .. },
            Cooperative(_),
            F16Sums { .. },
            Uniform(_),
            Subgroup4(_),
            MatvecSubgroup,
            Subgroup { .. }
        );
    }

    #[test]
    fn names_tell_kernels_apart() {
        let mut names = BTreeSet::new();
        for kernel in MatmulKernel::all().filter(|kernel| !matches!(kernel, Cooperative(_))) {
            assert!(names.insert(kernel.name()), "two kernels are called {}", kernel.name());
        }
    }
}
