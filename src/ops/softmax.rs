//! Softmax of rows.

use super::cost;
use crate::gpu::{Access, Kernel, Recorder, grid_1d, wgsl};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// For any rows, or for rows of whole vec4s.
pub(crate) fn kernel(vec4: bool) -> Kernel {
    let (name, source) =
        if vec4 { ("softmax_vec4", wgsl!("norm/softmax_vec4.wgsl")) } else { ("softmax", wgsl!("norm/softmax.wgsl")) };
    Kernel::new(name, [source], &[Access::Write])
}

/// x = softmax(scale x) over the first `k` values of every row of `x`, in place; the values after them become zero.
///
/// # Errors
/// [Device errors](crate::gpu); [`Error::WrongShape`](crate::Error::WrongShape) if shapes do not fit.
pub fn softmax(recorder: &mut Recorder, x: &Tensor, k: usize, scale: f32) -> Result<()> {
    let rows = x.rows();
    if !(1..=x.columns()).contains(&k) {
        return Err(Error::InvalidArgument(format!("softmax over {k} values of rows of length {}", x.columns())));
    }
    // Software adapters gain nothing from fewer reads, and lose by more exponentials.
    let vec4 = !recorder.gpu().is_software() && k.is_multiple_of(4) && x.columns().is_multiple_of(4);
    let each = if vec4 { 4 } else { 1 };
    recorder.dispatch(
        &kernel(vec4),
        &[x.binding()],
        &[rows as u32, (k / each) as u32, (x.columns() / each) as u32, scale.to_bits()],
        grid_1d(rows),
        cost(2 * x.len(), 6 * x.len()),
    )
}
