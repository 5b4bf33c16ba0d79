//! The matrix products: y = x W^T with weights of any [`Precision`](crate::tensor::Precision), and the steps that are
//! fused with them.
//!
//! * `kernel`: the kernels and all that is known of each; a new one is added there.
//! * `choose`: which kernel computes a product; `table`: what was measured.
//! * `shader`: the files and constants of a product's shader.
//! * `record`: the dispatches; `quantized_rows`: x rounded to 8 bits before them.

mod choose;
mod kernel;
mod quantized_rows;
mod record;
mod shader;
mod shape;
mod table;

use bytemuck::{Pod, Zeroable};

pub use self::kernel::{Cooperative, FewRows, MatmulKernel, Rounding, RowMatvec};
pub use self::quantized_rows::SharedRows;
pub(super) use self::quantized_rows::quantize_kernels;
pub(super) use self::record::{Params, Product};
pub(super) use self::shader::{EpilogueFlags, LhsSource, OutputStage, all_kernels, weight_reader};
pub use self::shape::{MatmulShape, products};
pub(crate) use self::table::Choice;
pub(crate) use self::table::update_tuning;
pub use self::table::{Tuning, set_tuning, tuning};
use super::Norm;
use crate::gpu::{Gpu, Recorder};
use crate::tensor::{Activation, Inputs, Matrix, Tensor};
use crate::{Error, Result};

/// What happens to a product before it is stored: `gamma * activation(x W^T + bias)`, or, where rows of W are gated,
/// `gamma * activation(even row) * odd row` of `x W^T + bias`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// Added first, [rows of W].
    pub bias: Option<&'a Tensor>,
    /// Then applied.
    pub activation: Option<Activation>,
    /// Rows of W alternate gate and up: outputs are `activation(gate) * up`, half the number of rows.
    pub gated: bool,
    /// Multiplied last, `[outputs]` (ConvNeXt's layer scale).
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

/// The parameters that only an implicit GEMM has, after the others.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
pub(super) struct ConvParams {
    pub height: u32,
    pub width: u32,
    pub pixels_per_image: u32,
    pub width_out: u32,
    pub channels4: u32,
    pub inverse_channels4: f32,
    pub taps: u32,
    pub stride: u32,
    pub padding: u32,
    pub upsample_shift: u32,
    pub height_limit: u32,
    pub width_limit: u32,
    pub first_row: u32,
    pub bias_stride: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ImplicitGemmParams {
    product: Params,
    convolution: ConvParams,
}

/// y = epilogue(x W^T): x [m, k], W [n, k] -> y [m, n] ([m, n / 2] if gated).
///
/// # Errors
/// [`Error::WrongShape`]; [device errors](crate::gpu).
pub fn linear(recorder: &mut Recorder, x: &Tensor, weight: &Matrix, epilogue: Epilogue<'_>) -> Result<Tensor> {
    linear_by(recorder, None, x, None, weight, epilogue)
}

/// y = epilogue(norm(x) W^T). The norm is fused with the product where it is an RMS norm and the kernel fuses norms.
///
/// # Errors
/// [`Error::WrongShape`]; [device errors](crate::gpu).
pub fn linear_normed(
    recorder: &mut Recorder,
    x: &Tensor,
    norm: &Norm,
    weight: &Matrix,
    epilogue: Epilogue<'_>,
) -> Result<Tensor> {
    linear_by(recorder, None, x, Some(norm), weight, epilogue)
}

/// The same, with or without a norm, by the given kernel, or by the one that is in use for such products.
///
/// # Errors
/// [`Error::WrongShape`]; [device errors](crate::gpu).
pub(crate) fn linear_by(
    recorder: &mut Recorder,
    kernel: Option<MatmulKernel>,
    x: &Tensor,
    norm: Option<&Norm>,
    weight: &Matrix,
    epilogue: Epilogue<'_>,
) -> Result<Tensor> {
    if let Some(norm) = norm {
        let fuses = match kernel {
            Some(kernel) => kernel.spec().fuses_norm,
            None => fuses_norm(recorder.gpu(), x.rows(), weight),
        };
        if norm.bias.is_some() || !fuses {
            let normed = super::norm(recorder, x, norm)?;
            return linear_by(recorder, kernel, &normed, None, weight, epilogue);
        }
    }
    let y = Tensor::temporary(recorder.gpu(), &[x.rows(), epilogue.outputs(weight)], "linear")?;
    Linear { kernel, norm, ..Linear::new(&SharedRows::new(x), weight, epilogue, &y) }.record(recorder)?;
    Ok(y)
}

/// y[row ..] += epilogue(x W^T): x [m, k], W [n, k], y [.., n].
///
/// # Errors
/// [`Error::WrongShape`]; [device errors](crate::gpu).
pub fn linear_add(
    recorder: &mut Recorder,
    x: &Tensor,
    weight: &Matrix,
    epilogue: Epilogue<'_>,
    y: &Tensor,
    row: usize,
) -> Result<()> {
    Linear { row, accumulate: true, ..Linear::new(&SharedRows::new(x), weight, epilogue, y) }.record(recorder)
}

/// The rows of one expert: `y[slot] = epilogue(x[slot / divisor] W^T)` for the slots in the expert's list.
///
/// # Errors
/// [`Error::WrongShape`]; [device errors](crate::gpu).
pub fn linear_routed(
    recorder: &mut Recorder,
    x: &SharedRows<'_>,
    weight: &Matrix,
    epilogue: Epilogue<'_>,
    routes: Routes<'_>,
    y: &Tensor,
) -> Result<()> {
    Linear { routes: Some(routes), ..Linear::new(x, weight, epilogue, y) }.record(recorder)
}

/// Whether the kernels of all shards fuse a norm with the product.
pub(super) fn fuses_norm(gpu: &Gpu, m: usize, weight: &Matrix) -> bool {
    let kernel = |shard| MatmulKernel::choose(gpu, MatmulShape::of_shard(shard, m, weight.columns()), weight.inputs());
    weight.shards().iter().all(|shard| kernel(shard).spec().fuses_norm)
}

/// A product of rows of a tensor.
struct Linear<'a> {
    /// `None`: the one in use for such products.
    kernel: Option<MatmulKernel>,
    rows: &'a SharedRows<'a>,
    norm: Option<&'a Norm>,
    weight: &'a Matrix,
    epilogue: Epilogue<'a>,
    y: &'a Tensor,
    /// The first row of y.
    row: usize,
    routes: Option<Routes<'a>>,
    accumulate: bool,
}

impl<'a> Linear<'a> {
    fn new(rows: &'a SharedRows<'a>, weight: &'a Matrix, epilogue: Epilogue<'a>, y: &'a Tensor) -> Self {
        Self { kernel: None, rows, norm: None, weight, epilogue, y, row: 0, routes: None, accumulate: false }
    }

    /// Checks the shapes and returns the number of rows to compute.
    fn check(&self) -> Result<usize> {
        let Self { rows, weight, epilogue, y, row, routes, .. } = self;
        let x = rows.x();
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
        let Self { kernel, rows, weight, epilogue, y, row, routes, norm, accumulate } = self;
        let x = rows.x();
        let (k, outputs) = (x.columns(), epilogue.outputs(weight));
        // What a product has no use for is bound to x, which it only reads.
        let unused = x.binding();
        Product {
            kernel,
            weight,
            m,
            lhs: LhsSource::of_rows(k),
            rows: Some(rows),
            routes,
            output: if routes.is_some() { OutputStage::RoutedEpilogue } else { OutputStage::Epilogue },
            norm,
            flags: EpilogueFlags {
                bias: epilogue.bias.is_some(),
                gamma: epilogue.gamma.is_some(),
                gated: epilogue.gated,
                accumulate,
                residual: false,
                activation: epilogue.activation,
            },
            inputs: weight.inputs(),
            advancing: &[],
            bindings: [
                x.binding(),
                unused,
                unused,
                epilogue.bias.map_or(unused, Tensor::binding),
                epilogue.gamma.map_or(unused, Tensor::binding),
                routes.map_or(unused, |routes| routes.lists.binding()),
                norm.map_or(unused, |norm| norm.weight.binding()),
                y.binding(),
            ],
        }
        .record(
            recorder,
            |_, common| Params {
                output_stride: outputs as u32,
                output_start: (row * outputs) as u32,
                route_base: routes.map_or(0, |routes| routes.base) as u32,
                route_divisor: routes.map_or(1, |routes| routes.divisor) as u32,
                ..common
            },
            |shard, m| 4 * (m * k + m * if epilogue.gated { shard.rows / 2 } else { shard.rows }),
        )
    }
}

/// A convolution as a product whose left matrix (im2col) is never stored. The caller checks the shapes: W
/// [n, taps * channels].
pub(super) struct ImplicitGemm<'a> {
    pub x: &'a Tensor,
    pub weight: &'a Matrix,
    /// `[n]`, or [images, n] where `convolution.bias_stride` is n.
    pub bias: Option<&'a Tensor>,
    pub activation: Option<Activation>,
    pub residual: Option<&'a Tensor>,
    pub y: &'a Tensor,
    /// What is known of x.
    pub inputs: Inputs,
    pub convolution: ConvParams,
}

impl ImplicitGemm<'_> {
    pub(super) fn record(self, recorder: &mut Recorder) -> Result<()> {
        let Self { x, weight, bias, activation, residual, y, inputs, convolution } = self;
        let (m, n) = (y.rows(), weight.rows());
        let unused = x.binding();
        Product {
            kernel: None,
            weight,
            m,
            lhs: LhsSource::Im2col,
            rows: None,
            routes: None,
            output: OutputStage::Epilogue,
            norm: None,
            flags: EpilogueFlags {
                bias: bias.is_some(),
                residual: residual.is_some(),
                activation,
                ..EpilogueFlags::default()
            },
            inputs,
            advancing: &[],
            bindings: [
                x.binding(),
                unused,
                unused,
                bias.map_or(unused, Tensor::binding),
                unused,
                residual.map_or(unused, Tensor::binding),
                unused,
                y.binding(),
            ],
        }
        .record(
            recorder,
            |first_row, common| ImplicitGemmParams {
                product: Params { output_stride: n as u32, ..common },
                convolution: ConvParams { first_row: first_row as u32, ..convolution },
            },
            |shard, rows| 4 * (x.len() * rows / m + rows * shard.rows),
        )
    }
}
