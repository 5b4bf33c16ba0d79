//! `mgm info`: lists the adapters.

use std::io::Write;

use mgm::gpu::list_adapters;

use crate::CliError;

pub async fn run() -> Result<(), CliError> {
    let adapters = list_adapters().await?;
    let mut out = std::io::stdout().lock();
    for adapter in adapters {
        let capabilities = &adapter.capabilities;
        let yes = |value| if value { "yes" } else { "no" };
        writeln!(out, "{}: {} ({}, {})", adapter.index, adapter.name, adapter.backend, adapter.kind)?;
        writeln!(out, "   driver              {}", adapter.driver)?;
        writeln!(out, "   f16 in shaders      {}", yes(capabilities.shader_f16))?;
        if capabilities.subgroups {
            let (low, high) = (capabilities.subgroup_min_size, capabilities.subgroup_max_size);
            writeln!(out, "   subgroups           {low} to {high} invocations")?;
        } else {
            writeln!(out, "   subgroups           no")?;
        }
        let matrices: Vec<_> = capabilities.cooperative_sizes.iter().map(|size| format!("{size} x {size}")).collect();
        let matrices = if matrices.is_empty() { "no".to_owned() } else { matrices.join(", ") };
        writeln!(out, "   matrix units        {matrices}")?;
        writeln!(out, "   kernel timestamps   {}", yes(capabilities.timestamps))?;
        writeln!(out, "   largest binding     {} MiB", capabilities.max_binding_bytes >> 20)?;
        writeln!(out, "   largest buffer      {} MiB", capabilities.max_buffer_bytes >> 20)?;
        writeln!(out, "   workgroup memory    {} KiB", capabilities.max_workgroup_bytes >> 10)?;
        writeln!(out, "   workgroup size      {}", capabilities.max_workgroup_invocations)?;
        if adapter.is_software() {
            writeln!(out, "   note                a software adapter: correct but slow")?;
        }
    }
    Ok(())
}
