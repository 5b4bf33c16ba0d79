//! Softmax of rows.

use super::cost;
use crate::gpu::{Access, Kernel, Recorder, grid_1d, wgsl};
use crate::tensor::Tensor;
use crate::{Error, Result};

pub(crate) fn kernel() -> Kernel {
    Kernel::new("softmax", [wgsl!("norm/softmax.wgsl")], &[Access::Write])
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
    recorder.dispatch(
        &kernel(),
        &[x.binding()],
        &[rows as u32, k as u32, x.columns() as u32, scale.to_bits()],
        grid_1d(rows),
        cost(2 * x.len(), 6 * x.len()),
    )
}
