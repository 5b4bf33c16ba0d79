//! The matrix products: y = x W^T with weights in any of the formats of [`Precision`], and what is fused around them.

mod kernel;
mod shape;
mod table;

use bytemuck::{Pod, Zeroable};

pub use self::kernel::{BlockedMatvec, Cooperative, MatmulKernel, Rounding};
use self::shape::Products;
pub use self::shape::{MatmulShape, products};
pub(crate) use self::table::Choice;
pub use self::table::{Tuning, set_tuning, tuning};
use super::Norm;
use crate::gpu::{Access, Cost, Gpu, Kernel, PipelineKey, Recorder, Source, wgsl};
use crate::tensor::{Activation, Matrix, Precision, Shard, Tensor};
use crate::{Error, Result};

/// The code of an activation in the override constant `ACTIVATION`.
fn activation_code(activation: Option<Activation>) -> u32 {
    match activation {
        None => 0,
        Some(Activation::GeluErf) => 1,
        Some(Activation::GeluTanh) => 2,
        Some(Activation::Silu) => 3,
        Some(Activation::QuickGelu) => 4,
    }
}

/// What happens to a product before it is stored: `gamma * activation(x W^T + bias)`, or, where rows of W are gated,
/// `gamma * activation(even row) * odd row` of `x W^T + bias`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// Added first, [rows of W].
    pub bias: Option<&'a Tensor>,
    /// Then applied.
    pub activation: Option<Activation>,
    /// Rows of W alternate gate and up: outputs are `activation(gate) * up`, half as many as rows.
    pub gated: bool,
    /// Multiplied last, [outputs] (ConvNeXt's layer scale).
    pub gamma: Option<&'a Tensor>,
}

impl Epilogue<'_> {
    /// Columns of y: rows of the weight, or half as many where they are gated.
    fn outputs(&self, weight: &Matrix) -> usize {
        if self.gated { weight.rows() / 2 } else { weight.rows() }
    }
}

/// Which rows of x an expert works on.
#[derive(Debug, Clone, Copy)]
pub struct Routes<'a> {
    /// Lists made by [`super::route`].
    pub lists: &'a Tensor,
    /// Start of this expert's list.
    pub base: usize,
    /// x has one row for this many slots: `top_k` for token rows, 1 for slot rows.
    pub divisor: usize,
    /// The most slots there may be in the list.
    pub capacity: usize,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
pub(super) struct Params {
    m: u32,
    n: u32,
    k: u32,
    weight_stride: u32,
    first: u32,
    output_stride: u32,
    output_start: u32,
    route_base: u32,
    route_divisor: u32,
    eps: f32,
}

/// The parameters that only a convolution has, behind the others.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
pub(super) struct ConvParams {
    pub height: u32,
    pub width: u32,
    pub pixels_out: u32,
    pub width_out: u32,
    pub channels4: u32,
    pub inverse_channels4: f32,
    pub taps: u32,
    pub stride: u32,
    pub before: u32,
    pub upsampled: u32,
    pub height_seen: u32,
    pub width_seen: u32,
    pub first_row: u32,
    pub bias_stride: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ImplicitGemmParams {
    product: Params,
    map: ConvParams,
}

impl Params {
    /// What a product of `m` rows with a shard of a matrix has in any case.
    pub(super) fn of_shard(shard: &Shard, m: usize, k: usize, norm: Option<&Norm>) -> Self {
        Self {
            m: m as u32,
            n: shard.rows as u32,
            k: k as u32,
            weight_stride: shard.precision.row_fours(k) as u32,
            first: shard.first as u32,
            route_divisor: 1,
            eps: norm.map_or(0.0, |norm| norm.eps),
            ..Self::default()
        }
    }
}

/// The reader of a matrix's weights by fours of a row, with the constants that it needs.
pub(crate) fn weight_reader(precision: Precision) -> (Source, Vec<(&'static str, u32)>) {
    let source = match precision {
        Precision::F32 => wgsl!("weights_f32.wgsl"),
        Precision::F16 => wgsl!("weights_f16.wgsl"),
        Precision::Q8 => wgsl!("weights_q8.wgsl"),
        _ => wgsl!("weights_quantised.wgsl"),
    };
    (source, reader_constants(precision))
}

/// The reader of 32 columns of four rows.
fn block_reader(precision: Precision) -> (Source, Vec<(&'static str, u32)>) {
    let source = match precision {
        Precision::F32 => wgsl!("blocks_f32.wgsl"),
        Precision::F16 => wgsl!("blocks_f16.wgsl"),
        Precision::Q8 => wgsl!("blocks_q8.wgsl"),
        _ => wgsl!("blocks_quantised.wgsl"),
    };
    (source, reader_constants(precision))
}

fn reader_constants(precision: Precision) -> Vec<(&'static str, u32)> {
    match precision.bits() {
        Some(bits) if bits < 8 => vec![("BITS", bits as u32), ("WIDE", u32::from(precision.wide_scales()))],
        _ => Vec::new(),
    }
}

/// How rows of x are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum LhsSource {
    /// Rows of any length.
    Scalar,
    /// Rows whose length is a multiple of 4.
    Vec4,
    /// What a convolution covers of a map.
    Im2col,
}

impl LhsSource {
    /// How rows of k are read.
    pub(super) fn of_rows(k: usize) -> Self {
        if k.is_multiple_of(4) { Self::Vec4 } else { Self::Scalar }
    }
}

/// What becomes of the sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum OutputStage {
    /// The epilogue, row by row.
    Plain,
    /// The epilogue, for the rows of one expert.
    Routed,
    /// Queries turned; keys, turned, and values into a cache, in f16 if `half`.
    Turned { half: bool },
}

/// What of the epilogue there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct EpilogueFlags {
    pub bias: bool,
    pub gamma: bool,
    pub gated: bool,
    pub accumulate: bool,
    pub residual: bool,
    pub activation: Option<Activation>,
}

impl EpilogueFlags {
    fn overrides(self) -> [(&'static str, u32); 6] {
        [
            ("HAS_BIAS", self.bias.into()),
            ("HAS_GAMMA", self.gamma.into()),
            ("GATED", self.gated.into()),
            ("ACCUMULATE", self.accumulate.into()),
            ("HAS_RESIDUAL", self.residual.into()),
            ("ACTIVATION", activation_code(self.activation)),
        ]
    }
}

/// What decides a specialisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Variant {
    pub matmul: MatmulKernel,
    pub precision: Precision,
    pub input: LhsSource,
    pub ending: OutputStage,
    /// With a norm before the product.
    pub norm: bool,
    /// That norm's gain is stored less one.
    pub unit_offset: bool,
    pub applied: EpilogueFlags,
}

impl PipelineKey for Variant {
    fn kernel(&self) -> Kernel {
        let mut sources = match self.ending {
            OutputStage::Plain => vec![
                wgsl!("linear_epilogue.wgsl"),
                wgsl!("activation.wgsl"),
                if self.input == LhsSource::Im2col { wgsl!("rows_map.wgsl") } else { wgsl!("rows_direct.wgsl") },
            ],
            OutputStage::Routed => {
                vec![wgsl!("linear_epilogue.wgsl"), wgsl!("activation.wgsl"), wgsl!("rows_routed.wgsl")]
            }
            OutputStage::Turned { half } => vec![
                wgsl!("rotary_epilogue.wgsl"),
                if half { wgsl!("store_f16.wgsl") } else { wgsl!("store_f32.wgsl") },
                wgsl!("rows_direct.wgsl"),
            ],
        };
        sources.push(match self.input {
            LhsSource::Scalar => wgsl!("input_scalar.wgsl"),
            LhsSource::Vec4 => wgsl!("input_vec4.wgsl"),
            LhsSource::Im2col => wgsl!("input_convolution.wgsl"),
        });
        let mut overrides = Vec::new();
        if !matches!(self.ending, OutputStage::Turned { .. }) {
            overrides.extend(self.applied.overrides());
        }
        let (reader, mut consts) = match self.matmul {
            MatmulKernel::Subgroup { .. } | MatmulKernel::MatvecSubgroup | MatmulKernel::BlockedMatvec(_) => {
                block_reader(self.precision)
            }
            _ => weight_reader(self.precision),
        };
        sources.push(reader);
        if self.matmul.fuses_norm() {
            sources.push(wgsl!("linear_norm.wgsl"));
            overrides.extend([("NORM", u32::from(self.norm)), ("UNIT_OFFSET", u32::from(self.unit_offset))]);
        }
        let name = match self.matmul {
            MatmulKernel::Matvec => {
                sources.extend([wgsl!("reduce_workgroup.wgsl"), wgsl!("matvec.wgsl")]);
                "matvec"
            }
            MatmulKernel::BlockedMatvec(BlockedMatvec { subgroups, workgroup, blocks }) => {
                let reduce = if subgroups { wgsl!("reduce_subgroup.wgsl") } else { wgsl!("reduce_workgroup.wgsl") };
                sources.extend([reduce, wgsl!("matvec_blocks.wgsl")]);
                overrides.push(("WORKGROUP", workgroup));
                consts.push(("BLOCKS", blocks));
                "matvec_blocks"
            }
            MatmulKernel::Tiled { half } => {
                let stage = if half { wgsl!("stage_half.wgsl") } else { wgsl!("stage_f32.wgsl") };
                sources.extend([wgsl!("tiles_64.wgsl"), stage, wgsl!("matmul.wgsl")]);
                "matmul"
            }
            MatmulKernel::Packed => {
                let bytes = match self.precision {
                    Precision::Q8 => wgsl!("packed_q8.wgsl"),
                    _ => wgsl!("packed_quantised.wgsl"),
                };
                sources.extend([wgsl!("tiles_64.wgsl"), bytes, wgsl!("matmul_packed.wgsl")]);
                "matmul_packed"
            }
            MatmulKernel::Cooperative(Cooperative { size, tile, workgroup }) => {
                let matrices = if size == 8 { wgsl!("cooperative_8.wgsl") } else { wgsl!("cooperative_16.wgsl") };
                sources.extend([wgsl!("stage_half.wgsl"), matrices, wgsl!("matmul_cooperative.wgsl")]);
                consts.extend([("TILE", tile), ("WORKGROUP", workgroup)]);
                "matmul_cooperative"
            }
            MatmulKernel::Uniform(rows) => {
                sources.push(wgsl!("matmul_uniform.wgsl"));
                overrides.push(("ROWS", rows));
                "matmul_uniform"
            }
            MatmulKernel::Subgroup4(rows) => {
                sources.push(wgsl!("matmul_subgroup4.wgsl"));
                overrides.push(("ROWS", rows));
                "matmul_subgroup4"
            }
            MatmulKernel::MatvecSubgroup => {
                sources.push(wgsl!("matvec_subgroup.wgsl"));
                "matvec_subgroup"
            }
            MatmulKernel::Subgroup { rows, blocks } => {
                sources.push(wgsl!("matmul_subgroup.wgsl"));
                consts.extend([("ROWS", rows), ("BLOCKS", blocks)]);
                "matmul_subgroup"
            }
        };
        Kernel {
            name,
            label: if self.input == LhsSource::Im2col { "convolution" } else { name },
            sources,
            overrides,
            consts,
            bindings: match self.ending {
                OutputStage::Turned { .. } => &[R, R, R, R, W, W, R, W],
                _ => &[R, R, R, R, R, R, R, W],
            },
        }
    }
}

const R: Access = Access::Read;
const W: Access = Access::Write;

/// One of the products below, about to be recorded.
struct Product<'a> {
    x: &'a Tensor,
    norm: Option<&'a Norm>,
    weight: &'a Matrix,
    epilogue: Epilogue<'a>,
    y: &'a Tensor,
    /// The first row of y.
    row: usize,
    routes: Option<Routes<'a>>,
    accumulate: bool,
}

/// A product whose rows of x are what a convolution covers. Shapes are checked by who makes it: W [n, taps * channels].
pub(super) struct ImplicitGemm<'a> {
    pub x: &'a Tensor,
    pub weight: &'a Matrix,
    /// [n], or [images, n] where `map.bias_stride` is n.
    pub bias: Option<&'a Tensor>,
    pub activation: Option<Activation>,
    pub residual: Option<&'a Tensor>,
    pub y: &'a Tensor,
    pub map: ConvParams,
}

/// y = epilogue(x W^T): x [m, k], W [n, k] -> y [m, n] (n / 2 where gated).
pub fn linear(recorder: &mut Recorder, x: &Tensor, weight: &Matrix, epilogue: Epilogue<'_>) -> Result<Tensor> {
    let y = Tensor::temporary(recorder.gpu(), &[x.rows(), epilogue.outputs(weight)], "linear")?;
    Product { x, norm: None, weight, epilogue, y: &y, row: 0, routes: None, accumulate: false }.record(recorder)?;
    Ok(y)
}

/// y = epilogue(norm(x) W^T), without a pass over x where `norm` is an RMS norm and the kernel can take it along.
pub fn linear_normed(
    recorder: &mut Recorder,
    x: &Tensor,
    norm: &Norm,
    weight: &Matrix,
    epilogue: Epilogue<'_>,
) -> Result<Tensor> {
    if norm.bias.is_some() || !fuses_norm(recorder.gpu(), x.rows(), weight) {
        let normed = super::norm(recorder, x, norm)?;
        return linear(recorder, &normed, weight, epilogue);
    }
    let y = Tensor::temporary(recorder.gpu(), &[x.rows(), epilogue.outputs(weight)], "linear")?;
    Product { x, norm: Some(norm), weight, epilogue, y: &y, row: 0, routes: None, accumulate: false }
        .record(recorder)?;
    Ok(y)
}

/// y[row ..] += epilogue(x W^T): x [m, k], W [n, k], y [.., n].
pub fn linear_add(
    recorder: &mut Recorder,
    x: &Tensor,
    weight: &Matrix,
    epilogue: Epilogue<'_>,
    y: &Tensor,
    row: usize,
) -> Result<()> {
    Product { x, norm: None, weight, epilogue, y, row, routes: None, accumulate: true }.record(recorder)
}

/// The rows of one expert: y[slot] = epilogue(x[slot / divisor] W^T) for the slots in the expert's list.
pub fn linear_routed(
    recorder: &mut Recorder,
    x: &Tensor,
    weight: &Matrix,
    epilogue: Epilogue<'_>,
    routes: Routes<'_>,
    y: &Tensor,
) -> Result<()> {
    Product { x, norm: None, weight, epilogue, y, row: 0, routes: Some(routes), accumulate: false }.record(recorder)
}

/// In a dry run, reports a product.
pub(super) fn note_product(recorder: &mut Recorder, shape: MatmulShape) {
    if let Some(products) = recorder.trace::<Products>() {
        products.0.insert(shape);
    }
}

/// Whether all shards of a product can take a norm along.
pub(super) fn fuses_norm(gpu: &Gpu, m: usize, weight: &Matrix) -> bool {
    weight
        .shards()
        .iter()
        .all(|shard| MatmulKernel::choose(gpu, MatmulShape::of_shard(shard, m, weight.columns())).fuses_norm())
}

impl Product<'_> {
    /// Checks the shapes; gives the rows to compute.
    fn check(&self) -> Result<usize> {
        let Self { x, weight, epilogue, y, row, routes, .. } = self;
        let outputs = epilogue.outputs(weight);
        if x.columns() != weight.columns() || y.columns() != outputs {
            return Err(Error::WrongShape {
                name: "linear".to_owned(),
                found: vec![x.rows(), x.columns(), y.columns()],
                expected: format!("[m, {}, {outputs}]", weight.columns()),
            });
        }
        for (name, vector, length) in [("bias", epilogue.bias, weight.rows()), ("gamma", epilogue.gamma, outputs)] {
            if let Some(vector) = vector {
                vector.expect(name, &[length])?;
            }
        }
        if let Some(norm) = self.norm {
            norm.weight.expect("norm weight", &[x.columns()])?;
        }
        if routes.is_none() && row + x.rows() > y.rows() {
            return Err(Error::WrongShape {
                name: "linear".to_owned(),
                found: y.shape().to_vec(),
                expected: format!("at least {} rows", row + x.rows()),
            });
        }
        Ok(routes.map_or(x.rows(), |routes| routes.capacity))
    }

    fn record(self, recorder: &mut Recorder) -> Result<()> {
        let m = self.check()?;
        if m == 0 {
            return Ok(());
        }
        let Self { x, weight, epilogue, y, row, routes, norm, accumulate } = self;
        let (k, outputs) = (x.columns(), epilogue.outputs(weight));
        let any = x.binding();
        for shard in weight.shards() {
            let shape = MatmulShape::of_shard(shard, m, k);
            note_product(recorder, shape);
            let form = MatmulKernel::choose(recorder.gpu(), shape);
            let variant = Variant {
                matmul: form,
                precision: shard.precision,
                input: LhsSource::of_rows(k),
                ending: if routes.is_some() { OutputStage::Routed } else { OutputStage::Plain },
                norm: norm.is_some(),
                unit_offset: norm.is_some_and(|norm| norm.unit_offset),
                applied: EpilogueFlags {
                    bias: epilogue.bias.is_some(),
                    gamma: epilogue.gamma.is_some(),
                    gated: epilogue.gated,
                    accumulate,
                    residual: false,
                    activation: epilogue.activation,
                },
            };
            let bindings = [
                x.binding(),
                shard.data.binding(),
                shard.scales.as_ref().map_or(any, Tensor::binding),
                epilogue.bias.map_or(any, Tensor::binding),
                epilogue.gamma.map_or(any, Tensor::binding),
                routes.map_or(any, |routes| routes.lists.binding()),
                norm.map_or(any, |norm| norm.weight.binding()),
                y.binding(),
            ];
            let params = Params {
                output_stride: outputs as u32,
                output_start: (row * outputs) as u32,
                route_base: routes.map_or(0, |routes| routes.base) as u32,
                route_divisor: routes.map_or(1, |routes| routes.divisor) as u32,
                ..Params::of_shard(shard, m, k, norm)
            };
            let written = if epilogue.gated { shard.rows / 2 } else { shard.rows };
            let cost = Cost {
                bytes: Matrix::bytes_for(shard.precision, shard.rows, k) as f64 + ((m * k + m * written) * 4) as f64,
                flops: 2.0 * m as f64 * k as f64 * shard.rows as f64,
            };
            recorder.dispatch(&variant, &bindings, &params, form.grid(m, shard.rows), cost)?;
        }
        Ok(())
    }
}

impl ImplicitGemm<'_> {
    pub(super) fn record(self, recorder: &mut Recorder) -> Result<()> {
        let Self { x, weight, bias, activation, residual, y, map } = self;
        let (m, n, k) = (y.rows(), weight.rows(), weight.columns());
        let any = x.binding();
        let applied = EpilogueFlags {
            bias: bias.is_some(),
            residual: residual.is_some(),
            activation,
            ..EpilogueFlags::default()
        };
        for shard in weight.shards() {
            let shape = MatmulShape::of_shard(shard, m, k);
            note_product(recorder, shape);
            let form = MatmulKernel::choose_for_map(recorder.gpu(), shape);
            let variant = Variant {
                matmul: form,
                precision: shard.precision,
                input: LhsSource::Im2col,
                ending: OutputStage::Plain,
                norm: false,
                unit_offset: false,
                applied,
            };
            let bindings = [
                any,
                shard.data.binding(),
                shard.scales.as_ref().map_or(any, Tensor::binding),
                bias.map_or(any, Tensor::binding),
                any,
                residual.map_or(any, Tensor::binding),
                any,
                y.binding(),
            ];
            for first_row in (0..m).step_by(form.max_rows()) {
                let rows = form.max_rows().min(m - first_row);
                let params = ImplicitGemmParams {
                    product: Params { output_stride: n as u32, ..Params::of_shard(shard, rows, k, None) },
                    map: ConvParams { first_row: first_row as u32, ..map },
                };
                let read = x.len() * rows / m;
                let cost = Cost {
                    bytes: Matrix::bytes_for(shard.precision, shard.rows, k) as f64
                        + ((read + rows * shard.rows) * 4) as f64,
                    flops: 2.0 * rows as f64 * k as f64 * shard.rows as f64,
                };
                recorder.dispatch(&variant, &bindings, &params, form.grid(rows, shard.rows), cost)?;
            }
        }
        Ok(())
    }
}

/// Every kernel that computes a matrix product.
pub(crate) fn all_kernels() -> Vec<Kernel> {
    let mut kernels = Vec::new();
    // All of the epilogue: less of it leaves code out and adds none.
    let applied = EpilogueFlags {
        bias: true,
        gamma: true,
        gated: true,
        accumulate: true,
        residual: true,
        activation: Some(Activation::GeluErf),
    };
    for kernel in MatmulKernel::all() {
        for precision in Precision::ALL.into_iter().filter(|precision| kernel.takes(*precision)) {
            for ending in [
                OutputStage::Plain,
                OutputStage::Routed,
                OutputStage::Turned { half: false },
                OutputStage::Turned { half: true },
            ] {
                for (input, norm) in
                    [LhsSource::Scalar, LhsSource::Vec4].into_iter().flat_map(|a| [false, true].map(|b| (a, b)))
                {
                    // No expert has a norm of its own.
                    if !norm || (ending != OutputStage::Routed && kernel.fuses_norm()) {
                        for unit_offset in [false, true].into_iter().filter(|unit_offset| norm || !unit_offset) {
                            let variant =
                                Variant { matmul: kernel, precision, input, ending, norm, unit_offset, applied };
                            kernels.push(variant.kernel());
                        }
                    }
                }
            }
            // Convolutions go through no form that takes rows one by one.
            if kernel.takes_many() {
                let (input, ending) = (LhsSource::Im2col, OutputStage::Plain);
                let variant =
                    Variant { matmul: kernel, precision, input, ending, norm: false, unit_offset: false, applied };
                kernels.push(variant.kernel());
            }
        }
    }
    kernels
}
