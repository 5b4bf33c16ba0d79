//! The matrix products: y = x W^T with f32, f16, q8 or q4 weights, and what is fused behind them.

use bytemuck::{Pod, Zeroable};

use crate::gpu::{Access, Cost, Kernel, Recorder, Source, wgsl};
use crate::tensor::{Matrix, Precision, Tensor};
use crate::{Error, Result};

/// Up to this many rows of x are taken one by one (matvec); more go through the tiled kernel, which reads each weight
/// once for 64 rows.
const MATVEC_ROWS: usize = 4;
/// Rows of x, and of W, in a tile of the tiled kernel.
const TILE: usize = 64;
/// Rows of W that a workgroup of the kernel for software adapters takes.
const UNIFORM_COLUMNS: usize = 256;

/// The kernels that compute a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Form {
    /// Row by row, the invocations of a workgroup splitting k.
    Matvec,
    /// Tiles in workgroup memory.
    Tiled,
    /// For software adapters: this many rows at a time, without workgroup memory.
    Uniform(u32),
}

impl Form {
    /// All of them.
    pub(crate) const ALL: [Self; 7] = [
        Self::Matvec,
        Self::Tiled,
        Self::Uniform(1),
        Self::Uniform(2),
        Self::Uniform(4),
        Self::Uniform(8),
        Self::Uniform(16),
    ];

    /// The form for `m` rows of x.
    fn choose(software: bool, m: usize) -> Self {
        match (software, m) {
            (true, _) => Self::Uniform((m.next_power_of_two() as u32).min(16)),
            (false, 0..=MATVEC_ROWS) => Self::Matvec,
            (false, _) => Self::Tiled,
        }
    }

    fn grid(self, m: usize, n: usize) -> [u32; 3] {
        let folded = |count: usize, z: usize| {
            let [x, y, _] = crate::gpu::grid_1d(count);
            [x, y, z as u32]
        };
        match self {
            Self::Matvec => folded(n.div_ceil(4), m),
            Self::Tiled => [n.div_ceil(TILE) as u32, m.div_ceil(TILE) as u32, 1],
            Self::Uniform(rows) => folded(n.div_ceil(UNIFORM_COLUMNS), m.div_ceil(rows as usize)),
        }
    }
}

/// What is applied to each output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Activation {
    /// Nothing.
    #[default]
    None,
    /// x Phi(x), with the error function.
    GeluErf,
    /// GELU's tanh approximation.
    GeluTanh,
    /// x sigmoid(x).
    Silu,
    /// x sigmoid(1.702 x).
    QuickGelu,
}

impl Activation {
    fn code(self) -> u32 {
        match self {
            Self::None => 0,
            Self::GeluErf => 1,
            Self::GeluTanh => 2,
            Self::Silu => 3,
            Self::QuickGelu => 4,
        }
    }
}

/// What happens to a product before it is stored: `gamma * activation(x W^T + bias)`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// Added first, [outputs].
    pub bias: Option<&'a Tensor>,
    /// Then applied.
    pub activation: Activation,
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
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct Params {
    m: u32,
    n: u32,
    k: u32,
    weight_stride: u32,
    first: u32,
    output_stride: u32,
    output_start: u32,
    route_base: u32,
    route_divisor: u32,
    padding: [u32; 3],
}

/// The weight reader for a precision.
pub(crate) fn weight_reader(precision: Precision) -> Source {
    match precision {
        Precision::F32 => wgsl!("weights_f32.wgsl"),
        Precision::F16 => wgsl!("weights_f16.wgsl"),
        Precision::Q8 => wgsl!("weights_q8.wgsl"),
        Precision::Q4 => wgsl!("weights_q4.wgsl"),
    }
}

/// What decides a specialisation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Variant {
    pub form: Form,
    pub precision: Precision,
    pub vec4: bool,
    pub routed: bool,
    pub bias: bool,
    pub gamma: bool,
    pub activation: Activation,
    pub gated: bool,
    pub accumulate: bool,
}

impl Variant {
    pub(crate) fn kernel(&self) -> Kernel {
        let mut sources = vec![
            wgsl!("linear_epilogue.wgsl"),
            wgsl!("activation.wgsl"),
            if self.vec4 { wgsl!("input_vec4.wgsl") } else { wgsl!("input_scalar.wgsl") },
            weight_reader(self.precision),
            if self.routed { wgsl!("rows_routed.wgsl") } else { wgsl!("rows_direct.wgsl") },
        ];
        let mut constants = vec![
            ("HAS_BIAS", u32::from(self.bias)),
            ("HAS_GAMMA", u32::from(self.gamma)),
            ("ACTIVATION", self.activation.code()),
            ("GATED", u32::from(self.gated)),
            ("ACCUMULATE", u32::from(self.accumulate)),
        ];
        let name = match self.form {
            Form::Matvec => {
                sources.extend([wgsl!("reduce_workgroup.wgsl"), wgsl!("matvec.wgsl")]);
                "matvec"
            }
            Form::Tiled => {
                sources.push(wgsl!("matmul.wgsl"));
                "matmul"
            }
            Form::Uniform(rows) => {
                sources.push(wgsl!("matmul_uniform.wgsl"));
                constants.push(("ROWS", rows));
                "matmul_uniform"
            }
        };
        Kernel {
            name,
            sources,
            constants,
            bindings: &[
                Access::Read,
                Access::Read,
                Access::Read,
                Access::Read,
                Access::Read,
                Access::Read,
                Access::Write,
            ],
        }
    }
}

/// y = epilogue(x W^T): x [m, k], W [n, k] -> y [m, n] (n / 2 where gated).
pub fn linear(recorder: &mut Recorder, x: &Tensor, weight: &Matrix, epilogue: Epilogue<'_>) -> Result<Tensor> {
    let y = Tensor::temporary(recorder.gpu(), &[x.rows(), epilogue.outputs(weight)], "linear")?;
    record(recorder, x, weight, epilogue, &y, 0, None, false)?;
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
    record(recorder, x, weight, epilogue, y, row, None, true)
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
    record(recorder, x, weight, epilogue, y, 0, Some(routes), false)
}

#[allow(clippy::too_many_arguments)]
fn record(
    recorder: &mut Recorder,
    x: &Tensor,
    weight: &Matrix,
    epilogue: Epilogue<'_>,
    y: &Tensor,
    row: usize,
    routes: Option<Routes<'_>>,
    accumulate: bool,
) -> Result<()> {
    let outputs = epilogue.outputs(weight);
    if x.columns() != weight.columns() || y.columns() != outputs || (epilogue.gated && epilogue.bias.is_some()) {
        return Err(Error::WrongShape {
            name: "linear".to_owned(),
            found: vec![x.rows(), x.columns(), y.columns()],
            expected: format!("[m, {}, {outputs}]", weight.columns()),
        });
    }
    for (name, vector) in [("bias", epilogue.bias), ("gamma", epilogue.gamma)] {
        if let Some(vector) = vector {
            vector.expect(name, &[outputs])?;
        }
    }
    let m = routes.map_or(x.rows(), |routes| routes.capacity);
    if m == 0 {
        return Ok(());
    }
    if routes.is_none() && row + m > y.rows() {
        return Err(Error::WrongShape {
            name: "linear".to_owned(),
            found: y.shape().to_vec(),
            expected: format!("at least {} rows", row + m),
        });
    }
    let k = x.columns();
    let variant = Variant {
        form: Form::choose(recorder.gpu().software_kernels(), m),
        precision: weight.precision(),
        vec4: k.is_multiple_of(4),
        routed: routes.is_some(),
        bias: epilogue.bias.is_some(),
        gamma: epilogue.gamma.is_some(),
        activation: epilogue.activation,
        gated: epilogue.gated,
        accumulate,
    };
    let kernel = variant.kernel();
    let any = x.binding();
    for piece in weight.pieces() {
        let bindings = [
            x.binding(),
            piece.data.binding(),
            piece.scales.as_ref().map_or(any, Tensor::binding),
            epilogue.bias.map_or(any, Tensor::binding),
            epilogue.gamma.map_or(any, Tensor::binding),
            routes.map_or(any, |routes| routes.lists.binding()),
            y.binding(),
        ];
        let params = Params {
            m: m as u32,
            n: piece.rows as u32,
            k: k as u32,
            weight_stride: weight.precision().row_fours(k) as u32,
            first: piece.first as u32,
            output_stride: outputs as u32,
            output_start: (row * outputs) as u32,
            route_base: routes.map_or(0, |routes| routes.base) as u32,
            route_divisor: routes.map_or(1, |routes| routes.divisor) as u32,
            padding: [0; 3],
        };
        let grid = variant.form.grid(m, piece.rows);
        let cost = Cost {
            bytes: Matrix::bytes_for(weight.precision(), piece.rows, k) as f64 + ((m * k + m * piece.rows) * 4) as f64,
            flops: 2.0 * m as f64 * k as f64 * piece.rows as f64,
        };
        recorder.dispatch(&kernel, &bindings, &params, grid, cost)?;
    }
    Ok(())
}
