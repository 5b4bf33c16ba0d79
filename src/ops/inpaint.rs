//! Inpainting with any model: after a denoising step, restores the known image outside of the mask.

use bytemuck::{Pod, Zeroable};

use super::{check_lengths, cost, element_grid};
use crate::Result;
use crate::gpu::{Access, Kernel, Recorder, wgsl};
use crate::tensor::Tensor;

/// The coefficients of a step (`shaders/diffusion/inpaint.wgsl`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Inpaint {
    /// Factors of (image, noise) that give the known image at the noise level of the next step.
    pub kept: [f32; 2],
    /// Factor of the next sample that gives the model's next input.
    pub input_scale: f32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    count: u32,
    channels: u32,
    copies: u32,
    kept: [f32; 2],
    input_scale: f32,
    padding: [u32; 2],
}

pub(crate) fn kernel() -> Kernel {
    const BINDINGS: &[Access] = &[Access::Read, Access::Read, Access::Read, Access::Write, Access::Write];
    Kernel::new("inpaint", [wgsl!("diffusion/inpaint.wgsl")], BINDINGS)
}

/// Replaces `sample` [pixels, channels] by the noised image `known` where `mask` (one value a pixel) is 0, and fills
/// `input` with copies of the model's next input.
///
/// # Errors
/// [`WrongShape`](crate::Error::WrongShape) if a tensor has another number of elements; [device errors](crate::gpu).
pub fn inpaint(
    recorder: &mut Recorder,
    step: &Inpaint,
    [known, noise, mask]: [&Tensor; 3],
    [sample, input]: [&Tensor; 2],
) -> Result<()> {
    let (count, pixels) = (sample.len(), mask.len().max(1));
    let copies = input.len() / count.max(1);
    check_lengths([
        ("known image of a step", known, count),
        ("noise of a step", noise, count),
        ("mask of a step", mask, pixels),
        ("sample of a step", sample, pixels * (count / pixels)),
        ("input of a step", input, copies * count),
    ])?;
    recorder.dispatch(
        &kernel(),
        &[known.binding(), noise.binding(), mask.binding(), sample.binding(), input.binding()],
        &Params {
            count: count as u32,
            channels: (count / pixels) as u32,
            copies: copies as u32,
            kept: step.kept,
            input_scale: step.input_scale,
            padding: [0; 2],
        },
        element_grid(count),
        cost((copies + 4) * count + pixels, 7 * count),
    )
}
