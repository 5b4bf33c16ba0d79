//! RMS and layer normalisation.

use bytemuck::{Pod, Zeroable};

use super::cost;
use crate::Result;
use crate::gpu::{Access, Kernel, Recorder, grid_1d, wgsl};
use crate::tensor::Tensor;

/// A normalisation layer.
#[derive(Debug, Clone)]
pub struct Norm {
    /// Gain, [columns].
    pub weight: Tensor,
    /// Offset, [columns]: with it the rows are centred (layer norm), without it they are not (RMS norm).
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

pub(crate) fn kernel(centred: bool, unit_offset: bool) -> Kernel {
    Kernel {
        name: "norm",
        label: "norm",
        sources: vec![wgsl!("reduce_workgroup.wgsl"), wgsl!("norm.wgsl")],
        constants: vec![("CENTRED", u32::from(centred)), ("UNIT_OFFSET", u32::from(unit_offset))],
        sizes: vec![],
        bindings: &[Access::Read, Access::Read, Access::Read, Access::Write],
    }
}

/// Normalises every row of `x` [.., columns].
pub fn norm(recorder: &mut Recorder, x: &Tensor, layer: &Norm) -> Result<Tensor> {
    let (rows, k) = (x.rows(), x.columns());
    layer.weight.expect("norm weight", &[k])?;
    let y = Tensor::temporary(recorder.gpu(), x.shape(), "norm")?;
    let bias = layer.bias.as_ref().unwrap_or(&layer.weight);
    bias.expect("norm bias", &[k])?;
    recorder.dispatch(
        &kernel(layer.bias.is_some(), layer.unit_offset),
        &[x.binding(), layer.weight.binding(), bias.binding(), y.binding()],
        &Params { rows: rows as u32, k: k as u32, eps: layer.eps, padding: 0 },
        grid_1d(rows),
        cost(2 * x.len() + 2 * k, 8 * x.len()),
    )?;
    Ok(y)
}
