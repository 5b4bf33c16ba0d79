//! A step of a sampler over latents, with classifier-free guidance.

use bytemuck::{Pod, Zeroable};

use super::{check_lengths, cost, element_grid};
use crate::gpu::{Access, Kernel, Recorder, wgsl};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// The numbers of a step (`shaders/denoise.wgsl` says what they are multiplied with).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Denoise {
    /// The guidance scale; `None` where there is no negative prompt.
    pub guidance_scale: Option<f32>,
    /// The denoised sample, of (sample, output).
    pub denoised: [f32; 2],
    /// Its largest magnitude.
    pub limit: f32,
    /// The next sample, of (sample, output, denoised, previously denoised, noise).
    pub next: [f32; 5],
    /// The model's next input, of the next sample.
    pub input_scale: f32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    count: u32,
    guided: u32,
    copies: u32,
    guidance_scale: f32,
    denoised: [f32; 2],
    limit: f32,
    next: [f32; 5],
    input_scale: f32,
    padding: [u32; 3],
}

pub(crate) fn kernel() -> Kernel {
    const BINDINGS: &[Access] = &[Access::Read, Access::Read, Access::Write, Access::Write, Access::Write];
    Kernel::new("denoise", [wgsl!("diffusion/denoise.wgsl")], BINDINGS)
}

/// Takes `sample` and the denoised sample in `previous` a step further, in place, by the model's `output` (for the
/// negative prompt first, where there is guidance), and fills `input` with copies of the model's next input. `noise` is
/// needed where the step weighs it.
///
/// # Errors
/// [`Error::WrongShape`] if a tensor has another number of elements than the step needs; [`Error::InvalidArgument`]
/// without the noise that the step needs; [device errors](crate::gpu).
pub fn denoise(
    recorder: &mut Recorder,
    step: &Denoise,
    output: &Tensor,
    noise: Option<&Tensor>,
    [sample, previous, input]: [&Tensor; 3],
) -> Result<()> {
    let count = sample.len();
    let outputs = if step.guidance_scale.is_some() { 2 } else { 1 };
    let copies = input.len() / count.max(1);
    let [.., of_noise] = step.next;
    check_lengths([
        ("output of a step", output, outputs * count),
        ("previous of a step", previous, count),
        ("input of a step", input, copies * count),
        ("noise of a step", noise.unwrap_or(output), if noise.is_some() { count } else { outputs * count }),
    ])?;
    if of_noise != 0.0 && noise.is_none() {
        return Err(Error::InvalidArgument("this step of the scheduler needs noise, and none was given".to_owned()));
    }
    // WGSL leaves infinities to the implementation; no finite f32 is cut by this.
    let limit = step.limit.min(f32::MAX);
    recorder.dispatch(
        &kernel(),
        &[output.binding(), noise.unwrap_or(output).binding(), sample.binding(), previous.binding(), input.binding()],
        &Params {
            count: count as u32,
            guided: u32::from(step.guidance_scale.is_some()),
            copies: copies as u32,
            guidance_scale: step.guidance_scale.unwrap_or(1.0),
            denoised: step.denoised,
            limit,
            next: step.next,
            input_scale: step.input_scale,
            padding: [0; 3],
        },
        element_grid(count),
        cost((outputs + copies + 5) * count, 16 * count),
    )
}
