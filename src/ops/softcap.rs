//! The soft cap of logits.

use bytemuck::{Pod, Zeroable};

use super::{cost, element_grid};
use crate::Result;
use crate::gpu::{Access, Kernel, Recorder, wgsl};
use crate::tensor::Tensor;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    count: u32,
    cap: f32,
    padding: [u32; 2],
}

pub(crate) fn kernel() -> Kernel {
    Kernel::new("softcap", [wgsl!("language/softcap.wgsl")], &[Access::Write])
}

/// x = cap tanh(x / cap), element by element, in place.
///
/// # Errors
/// [Device errors](crate::gpu).
pub fn softcap(recorder: &mut Recorder, x: &Tensor, cap: f32) -> Result<()> {
    recorder.dispatch(
        &kernel(),
        &[x.binding()],
        &Params { count: x.len() as u32, cap, padding: [0; 2] },
        element_grid(x.len()),
        cost(2 * x.len(), 8 * x.len()),
    )
}
