//! RMS and layer normalisation.

use bytemuck::{Pod, Zeroable};

use super::cost;
use crate::Result;
use crate::gpu::{Access, Gpu, Kernel, PipelineKey, Recorder, grid_1d, wgsl};
use crate::tensor::Tensor;

/// A normalisation layer.
#[derive(Debug, Clone)]
pub struct Norm {
    /// Gain, `[columns]`.
    pub weight: Tensor,
    /// Offset, `[columns]`: with it the rows are centred (layer norm), without it they are not (RMS norm).
    pub bias: Option<Tensor>,
    /// Added to the variance or mean square.
    pub eps: f32,
    /// The stored gain is one less than the gain (Gemma).
    pub unit_offset: bool,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    rows: u32,
    k: u32,
    eps: f32,
    padding: u32,
}

/// What decides a specialisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Variant {
    pub centred: bool,
    pub unit_offset: bool,
    /// Added to what is there.
    pub add: bool,
    pub registers: Option<RegisterRows>,
}

/// How a row that is read once is kept in registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct RegisterRows {
    /// Invocations a row.
    pub workgroup: usize,
    /// Vectors of four of each invocation.
    pub each: usize,
}

impl RegisterRows {
    /// The sizes that there are kernels for.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let sizes = [(8, 7), (64, 4), (256, 4)];
        sizes
            .into_iter()
            .flat_map(|(workgroup, powers)| (0..powers).map(move |power| Self { workgroup, each: 1 << power }))
    }

    /// The smallest that holds rows of k. Software adapters do better without many invocations that wait for each
    /// other.
    fn choose(gpu: &Gpu, k: usize) -> Option<Self> {
        let fits = |registers: &Self| {
            (gpu.is_software() || registers.workgroup > 8) && 4 * registers.workgroup * registers.each >= k
        };
        if k.is_multiple_of(4) { Self::all().find(fits) } else { None }
    }
}

impl PipelineKey for Variant {
    fn kernel(&self) -> Kernel {
        let mut overrides = vec![("CENTRED", u32::from(self.centred)), ("UNIT_OFFSET", u32::from(self.unit_offset))];
        if self.add {
            overrides.push(("ADD", 1));
        }
        let (name, source, consts) = match self.registers {
            Some(RegisterRows { workgroup, each }) => {
                overrides.push(("WORKGROUP", workgroup as u32));
                ("norm_registers", wgsl!("norm/norm_registers.wgsl"), vec![("VECS", each as u32)])
            }
            None => ("norm", wgsl!("norm/norm.wgsl"), vec![]),
        };
        Kernel {
            name,
            label: name,
            sources: vec![wgsl!("common/reduce_workgroup.wgsl"), source],
            overrides,
            consts,
            bindings: &[Access::Read, Access::Read, Access::Read, Access::Write],
        }
    }
}

/// Normalises every row of `x` [.., columns].
///
/// # Errors
/// [Device errors](crate::gpu); [`Error::WrongShape`](crate::Error::WrongShape) if shapes do not fit.
pub fn norm(recorder: &mut Recorder, x: &Tensor, layer: &Norm) -> Result<Tensor> {
    let y = Tensor::temporary(recorder.gpu(), x.shape(), "norm")?;
    record(recorder, x, layer, &y, false)?;
    Ok(y)
}

/// y += norm(x): x and y [rows, columns].
///
/// # Errors
/// [Device errors](crate::gpu); [`Error::WrongShape`](crate::Error::WrongShape) if shapes do not fit.
pub fn norm_add(recorder: &mut Recorder, x: &Tensor, layer: &Norm, y: &Tensor) -> Result<()> {
    y.expect("residual", &[x.rows(), x.columns()])?;
    record(recorder, x, layer, y, true)
}

fn record(recorder: &mut Recorder, x: &Tensor, layer: &Norm, y: &Tensor, add: bool) -> Result<()> {
    let (rows, k) = (x.rows(), x.columns());
    layer.weight.expect("norm weight", &[k])?;
    let bias = layer.bias.as_ref().unwrap_or(&layer.weight);
    bias.expect("norm bias", &[k])?;
    recorder.dispatch(
        &Variant {
            centred: layer.bias.is_some(),
            unit_offset: layer.unit_offset,
            add,
            registers: RegisterRows::choose(recorder.gpu(), k),
        },
        &[x.binding(), layer.weight.binding(), bias.binding(), y.binding()],
        &Params { rows: rows as u32, k: k as u32, eps: layer.eps, padding: 0 },
        grid_1d(rows),
        cost((2 + usize::from(add)) * x.len() + 2 * k, 8 * x.len()),
    )
}
