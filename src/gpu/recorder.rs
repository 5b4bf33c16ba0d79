//! Recording work: a list of dispatches and copies that is encoded and submitted together, in several submissions if it
//! is long.

use std::any::Any;
use std::sync::Arc;

use bytemuck::Pod;

use super::device::Gpu;
use super::dispatch::{Binding, Cost, MAX_DISPATCHES, MAX_GRID, MAX_PARAMS_BYTES};
use super::dry_run::{DryRunReport, Launch};
use super::encode::{Command, RecycledLists, encode};
use super::kernel::{Access, Pipeline, PipelineKey};
use super::memory::{Buffer, Recording};
use super::readback::{Readback, Submitted};
use super::timestamps::PendingTimes;
use crate::{Error, Result};

/// Operations after which a recording is submitted even if more follows, so that no single submission runs into the
/// operating system's watchdog (2 seconds on Windows) on a slow device.
const FLOPS_PER_SUBMISSION: f64 = 2e11;

/// A recording. Commands run in the order they are recorded.
#[derive(Debug)]
pub struct Recorder {
    gpu: Gpu,
    pub(super) commands: Vec<Command>,
    pub(super) params: Vec<u8>,
    pub(super) cost: Cost,
    /// Operations since the last [`Self::finish`].
    unfinished_flops: f64,
    /// Set while [`Self::capture`] runs.
    pub(super) capture: Option<Capture>,
    /// In a dry run: what would have been dispatched.
    dry_run: Option<DryRunReport>,
    /// The number of the submission that the commands will be in.
    submitted: Submitted,
    /// Keeps the buffers that were recorded. Dropped last.
    _recording: Recording,
}

/// What a recorder notes while it records a replay ([`Recorder::capture`]).
#[derive(Debug)]
pub(super) struct Capture {
    /// Offsets in the recorder's parameters.
    pub(super) advancing: Vec<usize>,
    pub(super) positions: usize,
    /// Ids of the pooled buffers that were bound, in order.
    pub(super) pooled: Vec<u64>,
}

impl Gpu {
    /// A new recording: a dry run on a planned device.
    pub fn record(&self) -> Recorder {
        if self.is_planned() { self.dry_run() } else { Recorder::new(self.clone()) }
    }

    /// A recording that runs nothing and reports what it would run ([`Recorder::into_report`]).
    pub fn dry_run(&self) -> Recorder {
        Recorder { dry_run: Some(DryRunReport::default()), ..Recorder::new(self.clone()) }
    }
}

impl Recorder {
    fn new(gpu: Gpu) -> Self {
        let RecycledLists { commands, params } = gpu.recycled_lists();
        let recording = gpu.recording();
        Self {
            gpu,
            commands,
            params,
            cost: Cost::default(),
            unfinished_flops: 0.0,
            capture: None,
            dry_run: None,
            submitted: Submitted::default(),
            _recording: recording,
        }
    }

    /// What a recording of [`Gpu::dry_run`] would have run.
    pub fn into_report(self) -> DryRunReport {
        self.dry_run.unwrap_or_default()
    }

    /// In a dry run, the trace of type `T`, made by `T::default()` on the first call: for what ops report besides
    /// kernels.
    pub fn trace<T: Any + Default>(&mut self) -> Option<&mut T> {
        self.dry_run.as_mut()?.traces.get_or_default()
    }

    /// The device that will run this.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Records one dispatch.
    ///
    /// # Errors
    /// [`Error::Gpu`] if the grid or a binding exceeds the device's limits, or a buffer that is written is bound twice;
    /// [device errors](super) of what is submitted when the recording is full.
    pub fn dispatch<S: PipelineKey, P: Pod>(
        &mut self,
        kernel: &S,
        bindings: &[Binding<'_>],
        params: &P,
        grid: [u32; 3],
        cost: Cost,
    ) -> Result<()> {
        self.dispatch_at_position(kernel, bindings, params, grid, cost, &[])
    }

    /// As [`Self::dispatch`], for a dispatch that can be replayed ([`Self::capture`]). `advancing`: byte offsets in
    /// `params` of the u32 fields that grow by one per position. Everything else must stay the same.
    ///
    /// # Errors
    /// As [`Self::dispatch`].
    pub fn dispatch_at_position<S: PipelineKey, P: Pod>(
        &mut self,
        kernel: &S,
        bindings: &[Binding<'_>],
        params: &P,
        grid: [u32; 3],
        cost: Cost,
        advancing: &[usize],
    ) -> Result<()> {
        const { assert!(size_of::<P>() <= MAX_PARAMS_BYTES) };
        if grid.contains(&0) {
            return Ok(());
        }
        if let Some(report) = &mut self.dry_run {
            report.launches.push(Launch { kernel: kernel.kernel(), grid, cost });
            return Ok(());
        }
        let pipeline = self.gpu.pipeline(kernel);
        debug_assert_eq!(bindings.len(), pipeline.bindings.len(), "{}", pipeline.name);
        if grid.iter().any(|&size| size > MAX_GRID) {
            return Err(Error::Gpu(format!(
                "{}: a grid of {grid:?} workgroups exceeds {MAX_GRID} in one dimension",
                pipeline.name
            )));
        }
        self.check_bindings(&pipeline, bindings)?;
        let wide: Vec<_>;
        let bindings = if self.gpu.guarded() {
            wide = bindings.iter().map(|binding| binding.with_guard_zone()).collect();
            wide.as_slice()
        } else {
            bindings
        };
        if self.params.len() == MAX_DISPATCHES * MAX_PARAMS_BYTES || self.cost.flops + cost.flops > FLOPS_PER_SUBMISSION
        {
            self.flush()?;
        }
        let bind_group = self.gpu.bind_group(&pipeline.layout, bindings);
        let start = self.params.len();
        if let Some(capture) = &mut self.capture {
            capture.advancing.extend(advancing.iter().map(|offset| start + offset));
            capture.pooled.extend(bindings.iter().map(|binding| binding.buffer).filter(|b| b.pooled()).map(Buffer::id));
        }
        self.params.extend_from_slice(bytemuck::bytes_of(params));
        self.params.resize(start + MAX_PARAMS_BYTES, 0);
        self.cost.flops += cost.flops;
        self.unfinished_flops += cost.flops;
        self.cost.bytes += cost.bytes;
        self.commands.push(Command::Dispatch { pipeline, bind_group, grid, cost });
        Ok(())
    }

    fn check_bindings(&self, kernel: &Pipeline, bindings: &[Binding<'_>]) -> Result<()> {
        let capabilities = self.gpu.capabilities();
        for (index, binding) in bindings.iter().enumerate() {
            let fits = binding.bytes > 0
                && binding.bytes <= capabilities.max_binding_bytes
                && binding.offset % capabilities.storage_alignment == 0
                && binding.offset + binding.bytes <= binding.buffer.bytes();
            if !fits {
                return Err(Error::Gpu(format!(
                    "{}: binding {index} has {} bytes at offset {} of a buffer of {} bytes (at most {} bytes at a multiple of {})",
                    kernel.name,
                    binding.bytes,
                    binding.offset,
                    binding.buffer.bytes(),
                    capabilities.max_binding_bytes,
                    capabilities.storage_alignment,
                )));
            }
            // WebGPU refuses a buffer that is read and written by one dispatch, even in different ranges.
            let clash = kernel.bindings[index] == Access::Write
                && bindings
                    .iter()
                    .enumerate()
                    .any(|(other, binding_2)| other != index && binding_2.buffer.id() == binding.buffer.id());
            if clash {
                return Err(Error::Gpu(format!("{}: a buffer that is written is bound twice", kernel.name)));
            }
        }
        Ok(())
    }

    /// Records a copy of `bytes` (a multiple of 4) between two different buffers.
    pub fn copy(&mut self, source: Binding<'_>, target: &Buffer, target_offset: u64) {
        if self.dry_run.is_some() {
            return;
        }
        self.commands.push(Command::Copy {
            source: source.buffer.raw().clone(),
            source_offset: source.offset,
            target: target.raw().clone(),
            target_offset,
            bytes: source.bytes,
        });
    }

    /// A temporary buffer, and the offset in it where `bytes` are when the commands recorded after this call run.
    pub(crate) fn upload(&mut self, bytes: &[u8], what: &str) -> Result<(Arc<Buffer>, u64)> {
        let padded = (bytes.len().max(4) as u64).next_multiple_of(4);
        let (target, target_offset) = self.gpu.place(padded, false, what)?;
        if self.dry_run.is_some() {
            return Ok((target, target_offset));
        }
        let staging = self.gpu.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some("upload"),
            size: padded,
            usage: wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: true,
        });
        self.gpu.check()?;
        let unmapped =
            |error: wgpu::MapRangeError| Error::Gpu(format!("{what}: the upload buffer cannot be mapped: {error}"));
        let mut view = staging.slice(..).get_mapped_range_mut().map_err(unmapped)?;
        view.slice(..bytes.len()).copy_from_slice(bytes);
        drop(view);
        staging.unmap();
        self.commands.push(Command::Upload { staging, target: target.raw().clone(), target_offset });
        Ok((target, target_offset))
    }

    /// Records that `binding` is to be read back. Await the result after [`Recorder::submit`].
    pub fn read_back(&mut self, binding: Binding<'_>) -> Readback {
        let staging = self.gpu.take_staging(binding.bytes);
        self.commands.push(Command::Copy {
            source: binding.buffer.raw().clone(),
            source_offset: binding.offset,
            target: staging.clone(),
            target_offset: 0,
            bytes: binding.bytes,
        });
        Readback { gpu: self.gpu.clone(), staging, bytes: binding.bytes, submitted: self.submitted.clone() }
    }

    /// Encodes and submits everything recorded.
    ///
    /// # Errors
    /// [Device errors](super).
    pub fn submit(mut self) -> Result<()> {
        self.flush()?;
        let (mut commands, mut params) = (std::mem::take(&mut self.commands), std::mem::take(&mut self.params));
        // A dry run leaves what it would have read back.
        commands.clear();
        params.clear();
        self.gpu.recycle_lists(RecycledLists { commands, params });
        Ok(())
    }

    /// Submits what was recorded so far and waits until it is done; recording continues.
    ///
    /// # Errors
    /// [Device errors](super).
    pub async fn finish(&mut self) -> Result<()> {
        self.unfinished_flops = 0.0;
        self.flush()?;
        self.gpu.flush_writes().await
    }

    /// Operations recorded since the last [`Self::finish`].
    pub(crate) fn unfinished_flops(&self) -> f64 {
        self.unfinished_flops
    }

    /// Whether everything recorded is submitted.
    pub(crate) fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }

    /// Whether a wait for what was recorded since the last one would take about half a second on a slow device.
    pub(crate) fn is_long(&self) -> bool {
        self.unfinished_flops > if self.gpu.is_software() { FLOPS_PER_SUBMISSION / 10.0 } else { FLOPS_PER_SUBMISSION }
    }

    /// Limits the replay that is being captured to the next `positions` positions.
    pub fn limit_replays(&mut self, positions: usize) {
        if let Some(capture) = &mut self.capture {
            capture.positions = capture.positions.min(positions);
        }
    }

    /// Submits what was recorded so far; recording continues.
    pub(crate) fn flush(&mut self) -> Result<()> {
        // Only what is submitted at once can be replayed.
        self.capture = None;
        if self.commands.is_empty() || self.dry_run.is_some() {
            return self.gpu.check();
        }
        let gpu = self.gpu.clone();
        let submitting = gpu.submitting();
        gpu.queue().write_buffer(gpu.params(), 0, &self.params);
        let mut commands = std::mem::take(&mut self.commands);
        let cost = std::mem::take(&mut self.cost);
        let dispatches = commands.iter().filter(|command| matches!(command, Command::Dispatch { .. })).count() as u32;
        let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let times = (gpu.profiling() && dispatches > 0).then(|| PendingTimes::new(gpu.device(), dispatches));
        let times = encode(&mut encoder, &commands, times);
        let index = gpu.queue().submit([encoder.finish()]);
        drop(submitting);
        // Set once: what is recorded next gets another.
        let _ = std::mem::take(&mut self.submitted).set(index);
        if let Some(times) = times {
            gpu.add_times(times);
        }
        // The lists are used again: by what is recorded next here, or by the next recording.
        for command in commands.drain(..) {
            if let Command::Upload { staging, .. } = command {
                staging.destroy();
            }
        }
        self.commands = commands;
        self.params.clear();
        let submission = gpu.count(u64::from(dispatches), cost);
        gpu.sweep_bind_groups(submission);
        gpu.check()
    }
}
