//! The device: adapters and capabilities, buffers and their pool, pipelines, recording, readback, timing.
//!
//! Everything that touches `wgpu` is here. An op describes a [`Kernel`] and records dispatches of it on a
//! [`Recorder`]; a recording is encoded and submitted once.

mod adapter;
mod capabilities;
mod device;
mod extensions;
mod guard;
mod kernel;
mod memory;
mod profile;
mod record;

pub use adapter::{AdapterChoice, AdapterSummary, list_adapters};
pub use capabilities::Capabilities;
pub use device::{Gpu, GpuOptions};
pub(crate) use kernel::wgsl;
pub use kernel::{Access, Kernel, PipelineKey, Source};
pub use memory::{Buffer, MemoryUse};
pub use profile::{KernelTime, Profile};
pub(crate) use record::MAX_GRID;
pub use record::{Binding, Cost, DryRunReport, MAX_PARAMS_BYTES, Readback, Recorder, grid_1d};
