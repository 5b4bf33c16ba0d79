//! The limits of an adapter: plain reads and multiply-adds.

use crate::Result;
use crate::gpu::{Access, Cost, Kernel, Recorder, grid_1d, wgsl};
use crate::tensor::Tensor;

/// vec4s that an invocation of the reading kernel adds up.
const READ_STEPS: usize = 64;
/// Multiply-adds of an invocation of the other: 2 vec4s, 16 x 256 times.
const FMA_STEPS: usize = 2 * 4 * 16 * 256;

pub(crate) fn kernels() -> [Kernel; 2] {
    [read_kernel(64), Kernel::new("roofline_fma", [wgsl!("bench/roofline_fma.wgsl")], &[Access::Write])]
}

fn read_kernel(workgroup: usize) -> Kernel {
    let kernel = Kernel::new("roofline_read", [wgsl!("bench/roofline_read.wgsl")], &[Access::Read, Access::Write]);
    Kernel { overrides: vec![("WORKGROUP", workgroup as u32)], ..kernel }
}

/// Reads `source`, but for a last part of less than 64 KiB.
///
/// # Errors
/// [Device errors](crate::gpu); [`Error::WrongShape`](crate::Error::WrongShape) if shapes do not fit.
pub fn read_all(recorder: &mut Recorder, source: &Tensor) -> Result<Tensor> {
    let workgroup = recorder.gpu().software_subgroups().map_or(64, |lanes| lanes as usize);
    let groups = source.len() / 4 / (workgroup * READ_STEPS);
    let fours = groups * workgroup * READ_STEPS;
    let y = Tensor::temporary(recorder.gpu(), &[groups * workgroup], "sums")?;
    let kernel = read_kernel(workgroup);
    let cost = Cost { bytes: (fours * 16) as f64, flops: 0.0 };
    recorder.dispatch(&kernel, &[source.binding(), y.binding()], &[0u32; 4], grid_1d(groups), cost)?;
    Ok(y)
}

/// Multiplies and adds in `groups` workgroups of 64 invocations.
///
/// # Errors
/// [Device errors](crate::gpu); [`Error::WrongShape`](crate::Error::WrongShape) if shapes do not fit.
pub fn multiply_add(recorder: &mut Recorder, groups: usize) -> Result<Tensor> {
    let y = Tensor::temporary(recorder.gpu(), &[groups * 64], "sums")?;
    let [_, kernel] = kernels();
    let cost = Cost { bytes: 0.0, flops: (2 * FMA_STEPS * groups * 64) as f64 };
    recorder.dispatch(&kernel, &[y.binding()], &[0.999f32, 0.0, 0.0, 0.0], grid_1d(groups), cost)?;
    Ok(y)
}
