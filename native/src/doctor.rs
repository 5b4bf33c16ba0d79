//! `mgm doctor`: checks every kernel variant that the device can run against a reference on the CPU.

use std::io::Write;
use std::time::Instant;

use mgm::Error;
use mgm::gpu::Gpu;
use mgm::ops::cases::{check, self_check};

use crate::args::DeviceArgs;
use crate::{CliError, progress};

pub async fn run(device: DeviceArgs) -> Result<(), CliError> {
    let gpu = Gpu::open(&device.options()).await?;
    let adapter = gpu.adapter();
    let mut out = std::io::stdout().lock();
    writeln!(out, "adapter  {} ({}, {})", adapter.name, adapter.backend, adapter.kind)?;
    writeln!(out, "driver   {}", adapter.driver)?;
    if adapter.is_software() {
        writeln!(out, "note     this is a software adapter; if the machine has a GPU, install its Vulkan driver")?;
    }
    if gpu.emulates_f16() {
        writeln!(
            out,
            "note     the driver cannot convert f16 to f32, so kernels do it with integers, which is slower"
        )?;
    }

    let cases = self_check();
    let bar = progress::count(cases.len() as u64, "checking");
    let started = Instant::now();
    let mut wrong = 0;
    let mut worst: (f64, String) = (0.0, String::new());
    for case in &cases {
        match check(&gpu, case.as_ref()).await {
            Err(lost @ Error::DeviceLost(_)) => return Err(lost.into()),
            Err(error) => {
                wrong += 1;
                bar.suspend(|| writeln!(out, "WRONG    {error}"))?;
            }
            Ok(report) if report.nmse > worst.0 => worst = (report.nmse, case.name()),
            Ok(_) => {}
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let (count, seconds) = (cases.len(), started.elapsed().as_secs_f32());
    writeln!(out, "kernels  {} of {count} correct, in {seconds:.1} s", count - wrong)?;
    writeln!(out, "error    at most {:.1e} (normalised mean square error): {}", worst.0, worst.1)?;
    let in_use = |used: bool| if used { "in use" } else { "not in use" };
    let matrices = mgm::tuning::check_matrix_units(&gpu).await?;
    if !gpu.capabilities().cooperative_sizes.is_empty() {
        let attention = mgm::tuning::has_attention_on_matrix_units(&gpu);
        writeln!(out, "matrices {} for products, {} for attention", in_use(matrices), in_use(attention))?;
    }
    // Matrix units compute these products where they can.
    if !matrices && gpu.capabilities().native_dots {
        writeln!(out, "dots     {}", in_use(mgm::tuning::check_native_dots(&gpu).await?))?;
    }
    if !matrices && gpu.capabilities().packed_f16 {
        writeln!(out, "f16 sums {}", in_use(mgm::tuning::check_f16_sums(&gpu).await?))?;
    }
    if wrong > 0 {
        let reason = format!(
            "{wrong} kernels give wrong results on this device: update its driver, or select another device with --adapter"
        );
        return Err(Error::Gpu(reason).into());
    }
    Ok(())
}
