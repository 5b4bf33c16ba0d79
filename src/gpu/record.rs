//! Recording work: a list of dispatches and copies that is encoded and submitted in one go.

use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, OnceLock, PoisonError};

use bytemuck::Pod;

use super::extensions::Traces;
use super::kernel::{Kernel, Pipeline, PipelineKey};
use super::memory::{Buffer, Recording};
use super::profile::Profile;
use super::{Access, Gpu};
use crate::{Error, Result};

/// Size of one dispatch's parameter slot: WebGPU's default alignment of dynamic uniform offsets.
pub const MAX_PARAMS_BYTES: usize = 256;

/// Slots in the parameter buffer, and so dispatches in one submission. With timestamps two queries each; query sets
/// hold at most 4096.
const MAX_DISPATCHES: usize = 2048;

pub(super) const PARAMS_BUFFER_BYTES: u64 = (MAX_DISPATCHES * MAX_PARAMS_BYTES) as u64;

/// Operations after which a recording is submitted even if more follows, so that no single submission runs into the
/// operating system's watchdog (2 seconds on Windows) on a slow device.
const FLOPS_PER_SUBMISSION: f64 = 2e11;

/// WebGPU's limit on each dimension of a grid.
pub(crate) const MAX_GRID: u32 = 65535;

/// What a dispatch must move and compute at least: the floor its time is held against.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    /// Bytes read and written, each once.
    pub bytes: f64,
    /// Operations; a multiply-add counts as two.
    pub flops: f64,
}

/// A range of a buffer.
#[derive(Debug, Clone, Copy)]
pub struct Binding<'a> {
    /// The buffer.
    pub buffer: &'a Buffer,
    /// Start, in bytes; a multiple of the device's storage alignment.
    pub offset: u64,
    /// Length, in bytes; a multiple of 4.
    pub bytes: u64,
}

impl Binding<'_> {
    /// The same with the zone behind it: drivers drop accesses beyond a binding, which would hide them from the guards.
    fn with_guard_zone(&self) -> Self {
        Self { bytes: self.buffer.bytes() - self.offset, ..*self }
    }
}

/// The grid for at least `count` workgroups: one row, or several where one would be too long. Kernels number their
/// workgroups `id.x + id.y * num_workgroups.x` and leave when that is past the end.
pub fn grid_1d(count: usize) -> [u32; 3] {
    let count = count.max(1) as u64;
    let rows = count.div_ceil(u64::from(MAX_GRID));
    [count.div_ceil(rows) as u32, rows as u32, 1]
}

#[derive(Debug)]
enum Command {
    Dispatch {
        pipeline: Arc<Pipeline>,
        bind_group: wgpu::BindGroup,
        grid: [u32; 3],
        cost: Cost,
    },
    Copy {
        source: wgpu::Buffer,
        source_offset: u64,
        target: wgpu::Buffer,
        target_offset: u64,
        bytes: u64,
    },
    /// Bytes of the host, in a buffer made for them.
    Upload {
        staging: wgpu::Buffer,
        target: wgpu::Buffer,
        target_offset: u64,
    },
}

/// What a dry run recorded.
#[derive(Debug, Default)]
pub struct DryRunReport {
    /// The specialisations.
    pub kernels: HashSet<Kernel>,
    traces: Traces,
}

impl DryRunReport {
    /// What was recorded in the trace of type `T` ([`Recorder::trace`]), if anything.
    pub fn trace<T: Any>(&self) -> Option<&T> {
        self.traces.get()
    }
}

/// A recording. Commands run in the order they are recorded.
#[derive(Debug)]
pub struct Recorder {
    gpu: Gpu,
    commands: Vec<Command>,
    params: Vec<u8>,
    cost: Cost,
    /// In a dry run: what would have been dispatched.
    dry_run: Option<DryRunReport>,
    /// The number of the submission that the commands will be in.
    submitted: Submitted,
    /// Keeps the buffers that were recorded. Dropped last.
    _recording: Recording,
}

impl Recorder {
    pub(super) fn new(gpu: Gpu) -> Self {
        let Spare { commands, params } = gpu.take_spare();
        let recording = gpu.recording();
        Self {
            gpu,
            commands,
            params,
            cost: Cost::default(),
            dry_run: None,
            submitted: Submitted::default(),
            _recording: recording,
        }
    }

    /// A recording that runs nothing and reports which kernels it would run.
    pub(super) fn dry_run(gpu: Gpu) -> Self {
        Self { dry_run: Some(DryRunReport::default()), ..Self::new(gpu) }
    }

    /// What a recording of [`Gpu::list`] noted.
    pub fn into_report(self) -> DryRunReport {
        self.dry_run.unwrap_or_default()
    }

    /// In a dry run, the trace of type `T`, made by `T::default()` on the first call: for what ops report besides kernels.
    pub fn trace<T: Any + Default>(&mut self) -> Option<&mut T> {
        self.dry_run.as_mut()?.traces.get_or_default()
    }

    /// The device that will run this.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Records one dispatch.
    pub fn dispatch<S: PipelineKey, P: Pod>(
        &mut self,
        kernel: &S,
        bindings: &[Binding<'_>],
        params: &P,
        grid: [u32; 3],
        cost: Cost,
    ) -> Result<()> {
        const { assert!(size_of::<P>() <= MAX_PARAMS_BYTES) };
        if grid.contains(&0) {
            return Ok(());
        }
        if let Some(report) = &mut self.dry_run {
            report.kernels.insert(kernel.kernel());
            return Ok(());
        }
        let pipeline = self.gpu.pipeline(kernel);
        debug_assert_eq!(bindings.len(), pipeline.bindings.len(), "{}", pipeline.name);
        if grid.iter().any(|&size| size > MAX_GRID) {
            return Err(Error::Gpu(format!("{}: a grid of {grid:?} workgroups is over the limit", pipeline.name)));
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
        let bind_group =
            self.gpu.bind_groups().lock().unwrap_or_else(PoisonError::into_inner).get(&self.gpu, &pipeline, bindings);
        let start = self.params.len();
        self.params.extend_from_slice(bytemuck::bytes_of(params));
        self.params.resize(start + MAX_PARAMS_BYTES, 0);
        self.cost.flops += cost.flops;
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
                    "{}: binding {index} of {} bytes at offset {} of a buffer of {} bytes does not fit (a binding may \
                     have {} bytes and start at multiples of {})",
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
                return Err(Error::Gpu(format!("{}: a buffer is bound for writing and once more", kernel.name)));
            }
        }
        Ok(())
    }

    /// Records a copy of `bytes` (a multiple of 4) between two different buffers.
    pub fn copy(&mut self, source: Binding<'_>, target: &Buffer, target_offset: u64) {
        self.commands.push(Command::Copy {
            source: source.buffer.raw().clone(),
            source_offset: source.offset,
            target: target.raw().clone(),
            target_offset,
            bytes: source.bytes,
        });
    }

    /// A place in a temporary buffer that will hold `bytes` when the commands recorded after this run.
    pub(crate) fn upload(&mut self, bytes: &[u8], what: &str) -> Result<(Arc<Buffer>, u64)> {
        let padded = (bytes.len().max(4) as u64).next_multiple_of(4);
        let (target, target_offset) = self.gpu.place(padded, false, what)?;
        let staging = self.gpu.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some("upload"),
            size: padded,
            usage: wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: true,
        });
        self.gpu.check()?;
        let unmapped = |error: wgpu::MapRangeError| Error::Gpu(format!("{what}: no memory to upload from: {error}"));
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
    pub fn submit(mut self) -> Result<()> {
        self.flush()?;
        let (commands, params) = (std::mem::take(&mut self.commands), std::mem::take(&mut self.params));
        self.gpu.keep_spare(Spare { commands, params });
        Ok(())
    }

    /// Submits what was recorded so far and waits until it is done; recording goes on.
    pub async fn finish(&mut self) -> Result<()> {
        self.flush()?;
        self.gpu.flush_writes().await
    }

    /// Submits what was recorded so far; recording goes on.
    pub(crate) fn flush(&mut self) -> Result<()> {
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
        let times = (gpu.profiling() && dispatches > 0).then(|| PendingTimes::new(&gpu, dispatches));
        let times = encode(&mut encoder, &commands, times);
        let index = gpu.queue().submit([encoder.finish()]);
        drop(submitting);
        // Set once: what is recorded next gets another.
        let _ = std::mem::take(&mut self.submitted).set(index);
        if let Some(times) = times {
            gpu.note_times(times);
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

fn encode(
    encoder: &mut wgpu::CommandEncoder,
    commands: &[Command],
    mut times: Option<PendingTimes>,
) -> Option<PendingTimes> {
    let mut slot = 0u32;
    let mut remaining = commands.iter().peekable();
    while let Some(command) = remaining.peek() {
        match command {
            Command::Copy { source, source_offset, target, target_offset, bytes } => {
                encoder.copy_buffer_to_buffer(source, *source_offset, target, *target_offset, Some(*bytes));
                remaining.next();
            }
            Command::Upload { staging, target, target_offset } => {
                encoder.copy_buffer_to_buffer(staging, 0, target, *target_offset, None);
                remaining.next();
            }
            Command::Dispatch { .. } => {
                let timestamp_writes = times.as_ref().map(|times| times.writes(slot));
                let mut pass =
                    encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: None, timestamp_writes });
                // One pass for all dispatches in a row; one for each when they are timed.
                while let Some(Command::Dispatch { pipeline, bind_group, grid, cost }) = remaining.peek() {
                    pass.set_pipeline(&pipeline.raw);
                    pass.set_bind_group(0, bind_group, &[slot * MAX_PARAMS_BYTES as u32]);
                    pass.dispatch_workgroups(grid[0], grid[1], grid[2]);
                    slot += 1;
                    remaining.next();
                    if let Some(times) = &mut times {
                        times.dispatches.push((pipeline.name, *cost));
                        break;
                    }
                }
            }
        }
    }
    if let Some(times) = &times {
        encoder.resolve_query_set(&times.queries, 0..2 * slot, &times.resolved, 0);
        encoder.copy_buffer_to_buffer(&times.resolved, 0, &times.staging, 0, None);
    }
    times
}

/// Bytes on their way from the device.
#[derive(Debug)]
pub struct Readback {
    gpu: Gpu,
    staging: wgpu::Buffer,
    bytes: u64,
    submitted: Submitted,
}

/// The number of a submission, once there is one.
type Submitted = Arc<OnceLock<wgpu::SubmissionIndex>>;

impl Readback {
    /// The bytes, once the device has got there. It does not wait for later submissions.
    pub async fn bytes(self) -> Result<Vec<u8>> {
        let bytes = read_staging(&self.gpu, &self.staging, self.bytes, self.submitted.get()).await?;
        self.gpu.keep_staging(self.staging);
        Ok(bytes)
    }

    /// The same as numbers.
    pub async fn values<T: Pod>(self) -> Result<Vec<T>> {
        Ok(bytemuck::pod_collect_to_vec(&self.bytes().await?))
    }
}

#[cfg_attr(target_arch = "wasm32", allow(unused_variables))]
async fn read_staging(
    gpu: &Gpu,
    staging: &wgpu::Buffer,
    bytes: u64,
    submitted: Option<&wgpu::SubmissionIndex>,
) -> Result<Vec<u8>> {
    gpu.check()?;
    let (sender, receiver) = futures_channel::oneshot::channel();
    staging.slice(..bytes).map_async(wgpu::MapMode::Read, move |result| drop(sender.send(result)));
    #[cfg(not(target_arch = "wasm32"))]
    gpu.wait(submitted)?;
    // What the device says of it comes first: it tells a lost device from a failed copy.
    let failed = |reason: String| {
        gpu.check().err().unwrap_or_else(|| Error::Gpu(format!("a buffer could not be read back: {reason}")))
    };
    match receiver.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Err(failed(error.to_string())),
        Err(_) => return Err(failed("its mapping was given up".to_owned())),
    }
    gpu.check()?;
    let bytes = staging.slice(..bytes).get_mapped_range().map_err(|error| failed(error.to_string()))?.to_vec();
    staging.unmap();
    Ok(bytes)
}

/// Timestamps of a submission that were not read yet.
#[derive(Debug)]
pub(super) struct PendingTimes {
    queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    staging: wgpu::Buffer,
    dispatches: Vec<(&'static str, Cost)>,
}

impl PendingTimes {
    fn new(gpu: &Gpu, dispatches: u32) -> Self {
        let device = gpu.device();
        let buffer = |usage| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("timestamps"),
                size: u64::from(dispatches) * 16,
                usage,
                mapped_at_creation: false,
            })
        };
        Self {
            queries: device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("timestamps"),
                ty: wgpu::QueryType::Timestamp,
                count: 2 * dispatches,
            }),
            resolved: buffer(wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC),
            staging: buffer(wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ),
            dispatches: Vec::new(),
        }
    }

    fn writes(&self, slot: u32) -> wgpu::ComputePassTimestampWrites<'_> {
        wgpu::ComputePassTimestampWrites {
            query_set: &self.queries,
            beginning_of_pass_write_index: Some(2 * slot),
            end_of_pass_write_index: Some(2 * slot + 1),
        }
    }

    pub(super) async fn add_to(self, profile: &mut Profile, gpu: &Gpu, period: f64) -> Result<()> {
        let ticks: Vec<[u64; 2]> =
            bytemuck::pod_collect_to_vec(&read_staging(gpu, &self.staging, self.staging.size(), None).await?);
        for ((name, cost), [begin, end]) in self.dispatches.into_iter().zip(ticks) {
            profile.add(name, end.saturating_sub(begin) as f64 * period, cost.bytes, cost.flops);
        }
        Ok(())
    }
}

/// Bind groups by what they bind, so that the steady state makes none.
#[derive(Debug, Default)]
pub(super) struct BindGroups {
    made: HashMap<BindGroupKey, (wgpu::BindGroup, u64)>,
    submission: u64,
    /// How many were made.
    pub(super) count: u64,
}

/// A recording's lists, emptied, for the next one.
#[derive(Debug, Default)]
pub(super) struct Spare {
    commands: Vec<Command>,
    params: Vec<u8>,
}

/// The pipeline, and buffer, offset and bytes of each binding.
type BindGroupKey = (usize, [(u64, u64, u64); MAX_BINDINGS]);

/// WebGPU's default limit of storage buffers.
const MAX_BINDINGS: usize = 8;

/// Above this many, bind groups that were not used for a while are dropped.
const MAX_BIND_GROUPS: usize = 8192;

impl BindGroups {
    fn get(&mut self, gpu: &Gpu, pipeline: &Pipeline, bindings: &[Binding<'_>]) -> wgpu::BindGroup {
        let mut key = (pipeline.id, [(0, 0, 0); MAX_BINDINGS]);
        for (place, binding) in key.1.iter_mut().zip(bindings) {
            *place = (binding.buffer.id(), binding.offset, binding.bytes);
        }
        let now = self.submission;
        let entry = self.made.entry(key).or_insert_with(|| {
            self.count += 1;
            (create_bind_group(gpu, pipeline, bindings), now)
        });
        entry.1 = now;
        entry.0.clone()
    }

    /// Drops the groups that bind buffers which are `gone`: they can be of no use, and keep the buffers' memory.
    pub(super) fn sweep(&mut self, submission: u64, gone: &HashSet<u64>) {
        self.submission = submission;
        if !gone.is_empty() {
            self.made.retain(|(_, bindings), _| bindings.iter().all(|(buffer, ..)| !gone.contains(buffer)));
        }
        if self.made.len() > MAX_BIND_GROUPS {
            self.made.retain(|_, (_, used)| *used + 4 > submission);
        }
    }

    pub(super) fn clear(&mut self) {
        self.made.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.made.len()
    }
}

fn create_bind_group(gpu: &Gpu, pipeline: &Pipeline, bindings: &[Binding<'_>]) -> wgpu::BindGroup {
    let mut entries: Vec<_> = bindings
        .iter()
        .enumerate()
        .map(|(index, binding)| wgpu::BindGroupEntry {
            binding: index as u32,
            resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer: binding.buffer.raw(),
                offset: binding.offset,
                size: wgpu::BufferSize::new(binding.bytes),
            }),
        })
        .collect();
    entries.push(wgpu::BindGroupEntry {
        binding: bindings.len() as u32,
        resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer: gpu.params(),
            offset: 0,
            size: wgpu::BufferSize::new(MAX_PARAMS_BYTES as u64),
        }),
    });
    gpu.device().create_bind_group(&wgpu::BindGroupDescriptor {
        label: Some(pipeline.name),
        layout: &pipeline.layout,
        entries: &entries,
    })
}

#[cfg(test)]
mod tests {
    use super::grid_1d;

    #[test]
    fn a_grid_covers_its_count_within_the_limits() {
        for count in [0, 1, 2, 65535, 65536, 65537, 1 << 20, 256_000 * 8] {
            let [x, y, z] = grid_1d(count);
            assert!(x <= 65535 && y <= 65535 && z == 1);
            assert!(x as usize * y as usize >= count && (x as usize * y as usize) < count.max(1) + y as usize);
        }
    }
}
