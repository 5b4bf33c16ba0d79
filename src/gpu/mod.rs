//! The device: adapters and capabilities, buffers and their pool, pipelines, recording, readback, timing.
//!
//! Everything that touches `wgpu` is here. An op describes a [`Kernel`] and records dispatches of it on a
//! [`Recorder`]; a recording is encoded and submitted once.
//!
//! # Device errors
//! [`Error::OutOfMemory`](crate::Error::OutOfMemory) if an allocation fails;
//! [`Error::DeviceLost`](crate::Error::DeviceLost); [`Error::Gpu`](crate::Error::Gpu) for any other report of the
//! device, a dispatch that exceeds its limits, or a failed readback. A device reports errors late: each surfaces at the
//! next allocation, submission or readback.

mod adapter;
mod bind_groups;
mod capabilities;
mod check_guards;
mod device;
mod dispatch;
mod dry_run;
mod encode;
mod extensions;
mod guard;
mod kernel;
mod lock;
mod memory;
mod options;
mod profile;
mod readback;
mod recorder;
mod replay;
mod source;
mod timestamps;
#[cfg(not(any(target_arch = "wasm32", target_vendor = "apple")))]
mod unchecked;
#[cfg(not(any(target_arch = "wasm32", target_vendor = "apple")))]
mod vulkan;

pub use adapter::{AdapterChoice, AdapterSummary, list_adapters};
pub use capabilities::Capabilities;
pub use device::Gpu;
pub(crate) use dispatch::MAX_GRID;
pub use dispatch::{Binding, Cost, MAX_PARAMS_BYTES, grid_1d};
pub use dry_run::{DryRunReport, KernelUse, Launch};
pub use kernel::{Access, Kernel, PipelineKey};
pub(crate) use lock::Lock;
pub use memory::{Buffer, MemoryUse};
pub use options::{GpuOptions, TestOptions, Withheld};
pub use profile::{KernelTime, Profile};
pub use readback::Readback;
pub use recorder::Recorder;
pub use replay::Replay;
pub use source::Source;
pub(crate) use source::wgsl;
#[cfg(target_arch = "wasm32")]
pub(crate) use source::{bare, bare_length};
