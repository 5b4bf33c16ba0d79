//! An open device.

use std::any::Any;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard};

use super::adapter::{self, AdapterSummary};
use super::bind_groups::BindGroups;
use super::capabilities::Capabilities;
use super::dispatch::{Binding, Cost, PARAMS_BUFFER_BYTES};
use super::encode::RecycledLists;
use super::extensions::Extensions;
use super::guard::{self, Guards, ZONE_BYTES};
use super::kernel::{Kernel, Layout, Pipeline, PipelineBuilder, PipelineKey, Pipelines};
use super::lock::Lock;
use super::memory::{Buffer, Memory, MemoryUse, Recording};
use super::options::GpuOptions;
use super::timestamps::PendingTimes;
use crate::{Error, Result};

/// An open device with its queue, buffers and pipelines. Clones share it.
#[derive(Debug, Clone)]
pub struct Gpu(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    device: wgpu::Device,
    queue: wgpu::Queue,
    adapter: AdapterSummary,
    capabilities: Capabilities,
    memory: Arc<Memory>,
    pipelines: Pipelines,
    bind_groups: Lock<BindGroups>,
    /// Parameters of all dispatches of a submission, one 256-byte slot each.
    params: wgpu::Buffer,
    first_error: FirstError,
    profiling: bool,
    times: Lock<Vec<PendingTimes>>,
    dispatches: AtomicU64,
    submissions: AtomicU64,
    cost: Lock<Cost>,
    guards: Option<Guards>,
    software_adapter: bool,
    /// The device cannot convert f16 to f32 and back, so kernels do it in integer arithmetic.
    emulates_f16: bool,
    /// Kernels may round activations to 8 bits.
    allows_int8: bool,
    /// All recordings are dry runs, and buffers take no memory.
    planned: bool,
    extensions: Arc<Extensions>,
    recycled_lists: Lock<RecycledLists>,
    /// Locked from when a submission's parameters are written until it is submitted: all submissions share one buffer
    /// for them.
    submitting: Lock<()>,
    /// Small readback buffers, unmapped, to be reused.
    staging: Lock<Vec<wgpu::Buffer>>,
    pipeline_cache: Option<wgpu::PipelineCache>,
    skipped_adapters: Vec<Error>,
    /// The submission after which the device is lost, in tests.
    lost_after: Option<u64>,
}

/// Size of the readback buffers that are reused: a token's id fits.
const SMALL_STAGING: u64 = 256;

type FirstError = Arc<Lock<Option<Error>>>;

/// Records an error unless there is one already; a lost device overrides any other.
fn record_error(first_error: &FirstError, error: Error) {
    let mut first = first_error.lock();
    if first.is_none() || matches!(error, Error::DeviceLost(_)) && !matches!(*first, Some(Error::DeviceLost(_))) {
        *first = Some(error);
    }
}

impl Inner {
    /// A GPU without options.
    fn new(
        device: wgpu::Device,
        queue: wgpu::Queue,
        adapter: AdapterSummary,
        capabilities: Capabilities,
        memory: Arc<Memory>,
        params: wgpu::Buffer,
        first_error: FirstError,
    ) -> Self {
        Self {
            device,
            queue,
            adapter,
            capabilities,
            memory,
            pipelines: Pipelines::default(),
            bind_groups: Lock::default(),
            params,
            first_error,
            profiling: false,
            times: Lock::default(),
            dispatches: AtomicU64::new(0),
            submissions: AtomicU64::new(0),
            cost: Lock::default(),
            guards: None,
            software_adapter: false,
            emulates_f16: false,
            allows_int8: true,
            planned: false,
            extensions: Arc::default(),
            recycled_lists: Lock::default(),
            submitting: Lock::default(),
            staging: Lock::default(),
            pipeline_cache: None,
            skipped_adapters: Vec::new(),
            lost_after: None,
        }
    }
}

/// An adapter whose device is open.
struct Opened {
    adapter: wgpu::Adapter,
    summary: AdapterSummary,
    features: wgpu::Features,
    limits: wgpu::Limits,
    device: wgpu::Device,
    queue: wgpu::Queue,
}

impl Opened {
    async fn new((index, adapter): (usize, wgpu::Adapter), options: &GpuOptions) -> Result<Self> {
        let summary = AdapterSummary::new(index, &adapter);
        let withheld = options.test.withheld;
        let wanted = wgpu::Features::SUBGROUP
            | wgpu::Features::SHADER_F16
            | wgpu::Features::PIPELINE_CACHE
            | wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX
            | if options.profile { wgpu::Features::TIMESTAMP_QUERY } else { wgpu::Features::empty() };
        let mut features = withheld.features(adapter.features() & wanted);
        let limits = if withheld.limits { wgpu::Limits::default() } else { adapter.limits() };
        if options.profile && !features.contains(wgpu::Features::TIMESTAMP_QUERY) {
            return Err(Error::InvalidArgument(format!(
                "{} has no timestamp queries, so it cannot be profiled",
                summary.name
            )));
        }
        let descriptor = |required_features| wgpu::DeviceDescriptor {
            label: Some("mgm"),
            required_features,
            required_limits: limits.clone(),
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            // SAFETY: the only experimental feature requested is cooperative matrices, which one kernel of this
            // crate uses. Models run it only where it was compared with the reference on this device, or by `mgm tune`
            // on the same adapter and driver.
            experimental_features: unsafe { wgpu::ExperimentalFeatures::enabled() },
            ..Default::default()
        };
        let request = async |features| {
            let descriptor = descriptor(features);
            #[cfg(not(any(target_arch = "wasm32", target_vendor = "apple")))]
            if options
                .test
                .unchecked
                .unwrap_or_else(|| withheld.bounds_checks || super::unchecked::is_worth_it(&adapter.get_info()))
                && let Some(opened) = super::unchecked::open(&adapter, &descriptor)
            {
                return Ok(opened);
            }
            adapter.request_device(&descriptor).await
        };
        let mut opened = request(features).await;
        if opened.is_err() && features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX) {
            features.remove(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX);
            opened = request(features).await;
        }
        let (device, queue) =
            opened.map_err(|error| Error::NoAdapter(format!("{} could not be opened: {error}", summary.name)))?;
        Ok(Self { summary, features, limits, device, queue, adapter })
    }
}

impl Gpu {
    /// Opens a device on the chosen adapter with every optional feature and the highest limits it offers.
    ///
    /// # Errors
    /// [`Error::NoAdapter`] if no adapter matches [`GpuOptions::adapter`] or the device cannot be opened;
    /// [`Error::InvalidArgument`] for profiling on an adapter without timestamp queries.
    pub async fn open(options: &GpuOptions) -> Result<Self> {
        Self::open_with_pipeline_cache(options, |_| None).await
    }

    /// The same with the pipelines of an earlier run. `load` returns exactly what [`Gpu::pipeline_cache`] returned for
    /// the same adapter and driver ([`AdapterSummary::cache_name`]), or `None`.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_with_pipeline_cache(
        options: &GpuOptions,
        load: impl FnOnce(&AdapterSummary) -> Option<Vec<u8>>,
    ) -> Result<Self> {
        let instance = adapter::instance();
        let candidates = adapter::choose(&instance, &options.adapter).await?;
        let open = async |candidate| Opened::new(candidate, options).await;
        let (opened, skipped) = adapter::first_that_opens(candidates, open).await?;
        let Opened { adapter, summary, features, limits, device, queue } = opened;

        let first_error = Arc::new(Lock::new(None));
        let uncaptured = first_error.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            record_error(
                &uncaptured,
                match error {
                    wgpu::Error::OutOfMemory { .. } => {
                        Error::OutOfMemory { what: "a buffer".to_owned(), needed: 0, available: 0 }
                    }
                    other => Error::Gpu(other.to_string()),
                },
            );
        }));
        let lost = first_error.clone();
        device.set_device_lost_callback(move |_, message| record_error(&lost, Error::DeviceLost(message)));

        let converts_f16 = wgpu::DownlevelFlags::SHADER_F16_IN_F32;
        let emulates_f16 = !adapter.get_downlevel_capabilities().flags.contains(converts_f16);
        let software_adapter = options.test.software_adapter.unwrap_or(summary.is_software());
        let mut capabilities = Capabilities::new(features, &limits, &adapter);
        capabilities.subgroups |= options.browser_subgroups;
        let reported = capabilities.native_dots || options.browser_native_dots;
        capabilities.native_dots = options.test.native_dots.unwrap_or(reported && !summary.is_software());
        let mut max_buffer_bytes = limits.max_buffer_size;
        let planned = options.test.planned.is_some();
        if let Some(planned) = &options.test.planned {
            capabilities.clone_from(planned);
            max_buffer_bytes = planned.max_buffer_bytes;
        }
        if let Some(bytes) = options.test.max_binding_bytes {
            capabilities.max_binding_bytes = capabilities.max_binding_bytes.min(bytes);
        }
        let pipeline_cache = features.contains(wgpu::Features::PIPELINE_CACHE).then(|| {
            let data = load(&summary);
            let descriptor =
                wgpu::PipelineCacheDescriptor { label: Some("pipelines"), data: data.as_deref(), fallback: true };
            // SAFETY: the data is what `Gpu::pipeline_cache` returned earlier, as the documentation above requires;
            // wgpu checks its header against the adapter and driver and starts an empty cache where they differ.
            unsafe { device.create_pipeline_cache(&descriptor) }
        });
        let memory = Memory::new(device.clone(), max_buffer_bytes, options.memory_limit, planned);
        let params = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("parameters"),
            size: PARAMS_BUFFER_BYTES,
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let first = Inner::new(device, queue, summary, capabilities, memory, params, first_error);
        Ok(Self(Arc::new(Inner {
            profiling: options.profile,
            guards: options.test.guard_zones.then(Guards::default),
            software_adapter,
            emulates_f16,
            allows_int8: !options.no_int8,
            planned,
            pipeline_cache,
            skipped_adapters: skipped,
            lost_after: options.test.lost_after,
            ..first
        })))
    }

    /// Why better adapters than the one in use could not be opened.
    pub fn skipped_adapters(&self) -> &[Error] {
        &self.0.skipped_adapters
    }

    /// The device itself, for tests of validation layers.
    #[doc(hidden)]
    pub fn wgpu(&self) -> (&wgpu::Device, &wgpu::Queue) {
        (&self.0.device, &self.0.queue)
    }

    /// The adapter in use.
    pub fn adapter(&self) -> &AdapterSummary {
        &self.0.adapter
    }

    /// What the device offers.
    pub fn capabilities(&self) -> &Capabilities {
        &self.0.capabilities
    }

    /// Whether the device is a software adapter, or a test treats it as one.
    pub(crate) fn is_software(&self) -> bool {
        self.0.software_adapter
    }

    /// Whether the device cannot convert f16 to f32 and back, so that kernels do it in integer arithmetic, slowly.
    pub fn emulates_f16(&self) -> bool {
        self.0.emulates_f16
    }

    /// Whether kernels may round activations to 8 bits.
    pub(crate) fn allows_int8(&self) -> bool {
        self.0.allows_int8
    }

    /// The size of subgroups, where kernels are chosen for a software adapter and all subgroups have one size.
    pub(crate) fn software_subgroups(&self) -> Option<u32> {
        self.capabilities().subgroup_size().filter(|_| self.is_software())
    }

    /// Memory in use.
    pub fn memory(&self) -> MemoryUse {
        self.0.memory.usage()
    }

    /// Whether all recordings are dry runs.
    pub(crate) fn is_planned(&self) -> bool {
        self.0.planned
    }

    /// A device with the capabilities and kernel choices of this one, to plan work on: its recordings are dry runs, and
    /// its buffers take no memory.
    pub fn plan(&self) -> Self {
        let Inner { device, queue, adapter, capabilities, params, first_error, .. } = &*self.0;
        let memory = Memory::new(device.clone(), self.0.memory.max_buffer_bytes(), None, true);
        let (device, queue, params, first_error) = (device.clone(), queue.clone(), params.clone(), first_error.clone());
        let planned = Inner::new(device, queue, adapter.clone(), capabilities.clone(), memory, params, first_error);
        Self(Arc::new(Inner {
            software_adapter: self.0.software_adapter,
            emulates_f16: self.0.emulates_f16,
            allows_int8: self.0.allows_int8,
            planned: true,
            extensions: self.0.extensions.clone(),
            ..planned
        }))
    }

    /// The value of type `T` that belongs to this device, made by `T::default()` on the first call: for what users of a
    /// device store with it.
    pub fn extension<T: Any + Default + Send + Sync>(&self) -> Arc<T> {
        self.0.extensions.get()
    }

    /// Creates a kernel's pipeline, if it does not exist yet. Several threads may do so at a time.
    pub fn prepare(&self, kernel: Kernel) {
        self.0.pipelines.make(&self.pipeline_builder(), kernel);
    }

    /// All pipelines in the driver's own format, for [`Gpu::open_with_pipeline_cache`]; `None` if the driver does not
    /// offer them.
    pub fn pipeline_cache(&self) -> Option<Vec<u8>> {
        self.0.pipeline_cache.as_ref()?.get_data()
    }

    /// Buffers, pipelines and bind groups made since the device was opened: none in a steady state.
    #[doc(hidden)]
    pub fn objects_made(&self) -> u64 {
        let bind_groups = self.0.bind_groups.lock().created;
        self.0.memory.created() + self.0.pipelines.kernels().len() as u64 + bind_groups
    }

    /// A buffer for weights or other persistent data, filled with zeros.
    ///
    /// # Errors
    /// [Device errors](super).
    pub fn allocate(&self, bytes: u64, what: &str) -> Result<Buffer> {
        self.make_room(what, bytes, || self.0.memory.dedicated(bytes, what))
    }

    /// A buffer from the pool, its content undefined. Write it by recorded commands only.
    pub(crate) fn temporary(&self, bytes: u64, what: &str) -> Result<Buffer> {
        self.make_room(what, bytes, || self.0.memory.pooled(bytes, what))
    }

    /// Takes the free buffers that a recording bound out of the pool ([`Memory::take_from_pool`]).
    pub(super) fn take_from_pool(&self, bound: &[u64]) -> Option<Vec<Buffer>> {
        self.0.memory.take_from_pool(bound)
    }

    /// Allocates; if memory runs out, frees what is only cached and tries once more.
    fn make_room(&self, what: &str, bytes: u64, allocate: impl Fn() -> Result<Buffer>) -> Result<Buffer> {
        let checked = || allocate().and_then(|buffer| self.check().map(|()| buffer));
        let allocated = match checked() {
            Err(Error::OutOfMemory { .. }) => {
                self.trim();
                checked()
            }
            done => done,
        };
        allocated.map_err(|error| name_allocation(error, what, bytes, self.memory().allocated))
    }

    /// Memory for a tensor: a buffer, and the tensor's offset in it. If `persistent`, it is filled with zeros;
    /// otherwise it comes from the pool, its content undefined.
    pub(crate) fn place(&self, bytes: u64, persistent: bool, what: &str) -> Result<(Arc<Buffer>, u64)> {
        let Some(guards) = &self.0.guards else {
            let buffer = if persistent { self.allocate(bytes, what)? } else { self.temporary(bytes, what)? };
            return Ok((Arc::new(buffer), 0));
        };
        let buffer = Arc::new(self.allocate(bytes + 2 * ZONE_BYTES, what)?);
        if persistent {
            let end = ZONE_BYTES + bytes;
            self.write(&buffer, 0, &guard::pattern(ZONE_BYTES));
            self.write(&buffer, end, &guard::pattern(buffer.bytes() - end));
        } else {
            self.write(&buffer, 0, &guard::pattern(buffer.bytes()));
        }
        guards.add(buffer.clone(), ZONE_BYTES, bytes, what);
        Ok((buffer, ZONE_BYTES))
    }

    /// Whether tensors lie between guard zones.
    pub(super) fn guarded(&self) -> bool {
        self.0.guards.is_some()
    }

    pub(super) fn guards(&self) -> Option<&Guards> {
        self.0.guards.as_ref()
    }

    /// Writes bytes into a persistent buffer before anything recorded later runs. `offset` and length are multiples
    /// of 4.
    pub fn write(&self, buffer: &Buffer, offset: u64, bytes: &[u8]) {
        if !self.0.planned {
            self.0.queue.write_buffer(buffer.raw(), offset, bytes);
        }
    }

    /// Submits pending writes and waits until their staging memory is free again, so that loading a model uses a
    /// bounded amount of it.
    ///
    /// # Errors
    /// [Device errors](super).
    pub async fn flush_writes(&self) -> Result<()> {
        if self.0.planned {
            return self.check();
        }
        self.0.queue.submit([]);
        #[cfg(not(target_arch = "wasm32"))]
        self.wait(None)?;
        #[cfg(target_arch = "wasm32")]
        {
            let (sender, receiver) = futures_channel::oneshot::channel();
            // The receiver is gone if this future was dropped.
            self.0.queue.on_submitted_work_done(move || sender.send(()).unwrap_or_default());
            receiver.await.ok();
        }
        self.check()
    }

    pub(super) fn recording(&self) -> Recording {
        self.0.memory.recording()
    }

    /// Returns unused memory to the device.
    pub fn trim(&self) {
        self.0.bind_groups.lock().clear();
        self.0.memory.trim();
    }

    /// Buffers created so far. For tests.
    #[doc(hidden)]
    pub fn created_buffers(&self) -> u64 {
        self.0.memory.created()
    }

    /// Refuses buffers after the next `buffers`, as a device without memory does; `None` ends that. For tests.
    #[doc(hidden)]
    pub fn set_full_after(&self, buffers: Option<u64>) {
        self.0.memory.set_full_after(buffers);
    }

    /// Destroys the device at once. Work in progress and all later calls fail with [`Error::DeviceLost`].
    pub fn destroy(&self) {
        // First, since what the destruction breaks is reported before the loss itself is.
        record_error(&self.0.first_error, Error::DeviceLost("it was destroyed".to_owned()));
        self.0.device.destroy();
    }

    /// The first error the device reported since the last call, if any. A lost device stays lost.
    ///
    /// # Errors
    /// That error: see [Device errors](super).
    pub fn check(&self) -> Result<()> {
        let mut first_error = self.0.first_error.lock();
        match first_error.as_ref() {
            None => Ok(()),
            Some(lost @ Error::DeviceLost(_)) => Err(lost.clone()),
            Some(_) => Err(first_error.take().unwrap_or(Error::Cancelled)),
        }
    }

    /// Dispatches recorded since the device was opened.
    pub fn dispatch_count(&self) -> u64 {
        self.0.dispatches.load(Ordering::Relaxed)
    }

    /// The cost of the work submitted since the last call.
    pub fn take_cost(&self) -> Cost {
        std::mem::take(&mut *self.0.cost.lock())
    }

    /// Every kernel that has a pipeline.
    pub fn kernels(&self) -> Vec<Kernel> {
        self.0.pipelines.kernels()
    }

    pub(super) fn device(&self) -> &wgpu::Device {
        &self.0.device
    }

    pub(super) fn queue(&self) -> &wgpu::Queue {
        &self.0.queue
    }

    pub(super) fn submitting(&self) -> MutexGuard<'_, ()> {
        self.0.submitting.lock()
    }

    pub(super) fn params(&self) -> &wgpu::Buffer {
        &self.0.params
    }

    pub(super) fn pipeline<S: PipelineKey>(&self, key: &S) -> Arc<Pipeline> {
        self.0.pipelines.get(&self.pipeline_builder(), key)
    }

    fn pipeline_builder(&self) -> PipelineBuilder<'_> {
        let Inner { device, capabilities, pipeline_cache, .. } = &*self.0;
        PipelineBuilder {
            device,
            capabilities,
            cache: pipeline_cache.as_ref(),
            #[cfg(not(target_arch = "wasm32"))]
            emulates_f16: self.0.emulates_f16,
        }
    }

    /// A buffer to read at least `bytes` back through.
    pub(super) fn take_staging(&self, bytes: u64) -> wgpu::Buffer {
        if bytes <= SMALL_STAGING {
            let kept = self.0.staging.lock().pop();
            if let Some(buffer) = kept {
                return buffer;
            }
        }
        self.0.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("read back"),
            size: bytes.max(SMALL_STAGING),
            usage: wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ,
            mapped_at_creation: false,
        })
    }

    /// Takes a buffer back that was read.
    pub(super) fn keep_staging(&self, buffer: wgpu::Buffer) {
        if buffer.size() == SMALL_STAGING {
            self.0.staging.lock().push(buffer);
        } else {
            buffer.destroy();
        }
    }

    pub(super) fn recycled_lists(&self) -> RecycledLists {
        std::mem::take(&mut *self.0.recycled_lists.lock())
    }

    pub(super) fn recycle_lists(&self, recycled_lists: RecycledLists) {
        *self.0.recycled_lists.lock() = recycled_lists;
    }

    /// The bind group of these bindings, created on first use.
    pub(super) fn bind_group(&self, layout: &Layout, bindings: &[Binding<'_>]) -> wgpu::BindGroup {
        self.0.bind_groups.lock().get(&self.0.device, &self.0.params, layout, bindings)
    }

    pub(super) fn profiling(&self) -> bool {
        self.0.profiling
    }

    pub(super) fn add_times(&self, times: PendingTimes) {
        self.0.times.lock().push(times);
    }

    /// The timestamps added since the last call.
    pub(super) fn take_times(&self) -> Vec<PendingTimes> {
        std::mem::take(&mut *self.0.times.lock())
    }

    /// Drops the bind groups that are of no use after this submission.
    pub(super) fn sweep_bind_groups(&self, submission: u64) {
        let dropped = self.0.memory.take_dropped_ids().into_iter().collect();
        self.0.bind_groups.lock().sweep(submission, &dropped);
    }

    /// The number of cached bind groups. Each keeps its buffers' memory.
    #[doc(hidden)]
    pub fn bind_group_count(&self) -> usize {
        self.0.bind_groups.lock().len()
    }

    /// Counts a submission and returns its number.
    pub(super) fn count(&self, dispatches: u64, cost: Cost) -> u64 {
        let mut total = self.0.cost.lock();
        total.bytes += cost.bytes;
        total.flops += cost.flops;
        drop(total);
        self.0.dispatches.fetch_add(dispatches, Ordering::Relaxed);
        let submission = self.0.submissions.fetch_add(1, Ordering::Relaxed);
        if self.0.lost_after == Some(submission) {
            self.destroy();
        }
        submission
    }

    #[cfg(not(target_arch = "wasm32"))]
    /// Waits until a submission is done; without its number until all are.
    pub(super) fn wait(&self, submission: Option<&wgpu::SubmissionIndex>) -> Result<()> {
        self.0
            .device
            .poll(wgpu::PollType::Wait { submission_index: submission.cloned(), timeout: None })
            .map(|_| ())
            .map_err(|error| self.check().err().unwrap_or_else(|| Error::DeviceLost(error.to_string())))
    }
}

/// Puts the name and size of what was being allocated into an out-of-memory error that the driver reported.
fn name_allocation(error: Error, what: &str, bytes: u64, allocated: u64) -> Error {
    match error {
        Error::OutOfMemory { needed: 0, .. } => Error::OutOfMemory {
            what: format!("{what} (after {} MiB)", allocated.saturating_sub(bytes) >> 20),
            needed: bytes,
            available: 0,
        },
        other => other,
    }
}
