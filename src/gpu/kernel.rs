//! Kernels: WGSL parts put together, override constants, bindings; and the cache of their pipelines.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, OnceLock};

use foldhash::fast::FixedState;

use super::capabilities::Capabilities;
use super::lock::Lock;
use super::source::Source;
#[cfg(not(target_arch = "wasm32"))]
use super::source::wgsl;
#[cfg(not(target_arch = "wasm32"))]
use crate::{Error, Result};

/// `pack2x16float` and `unpack2x16float` for devices that lack them. WebGPU has them, so browsers do too.
#[cfg(not(target_arch = "wasm32"))]
const HALF_BITS: Source = wgsl!("common/half_bits.wgsl");

/// How a kernel uses a storage binding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// `var<storage, read>`
    Read,
    /// `var<storage, read_write>`
    Write,
}

/// A specialisation of a kernel: all that decides its machine code.
///
/// Group 0 has the storage `bindings` in order, then, at the next number, a uniform block of parameters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// The name of the entry point.
    pub name: &'static str,
    /// The name in profiles.
    pub label: &'static str,
    /// WGSL files, joined in order.
    pub sources: Vec<Source>,
    /// Values of `override` constants. Booleans are 0 or 1.
    pub overrides: Vec<(&'static str, u32)>,
    /// Values of `const` declarations, for what an `override` cannot be: lengths of arrays, and what decides them.
    pub consts: Vec<(&'static str, u32)>,
    /// Storage bindings.
    pub bindings: &'static [Access],
}

impl Kernel {
    /// One without constants, whose label is its name.
    pub fn new(name: &'static str, sources: impl Into<Vec<Source>>, bindings: &'static [Access]) -> Self {
        Self { name, label: name, sources: sources.into(), overrides: Vec::new(), consts: Vec::new(), bindings }
    }

    /// The WGSL text of this specialisation.
    ///
    /// Browsers want extensions enabled by a directive that naga does not take, so directives depend on who compiles.
    pub fn wgsl(&self, for_browser: bool) -> String {
        let mut text = String::new();
        if self.uses_f16() {
            text.push_str("enable f16;\n");
        }
        if for_browser && self.uses_subgroups() {
            text.push_str("enable subgroups;\n");
        }
        if self.uses_cooperative_matrices() {
            text.push_str("enable wgpu_cooperative_matrix;\n");
        }
        for (name, value) in &self.consts {
            text.push_str(&format!("const {name}: u32 = {value}u;\n"));
        }
        for source in &self.sources {
            text.push_str(source.text);
            text.push('\n');
        }
        text
    }

    /// Invocations of a workgroup.
    ///
    /// # Errors
    /// [`Error::Internal`] if the kernel's WGSL is wrong.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn workgroup_invocations(&self) -> Result<u32> {
        use wgpu::naga::{Expression, Literal, front::wgsl};
        let text = self.wgsl(false);
        let wrong = |reason: String| Error::Internal(format!("{}: {reason}", self.name));
        let module = wgsl::parse_str(&text).map_err(|error| wrong(error.emit_to_string(&text)))?;
        let entry = module.entry_points.iter().find(|entry| entry.name == self.name);
        let entry = entry.ok_or_else(|| wrong("no such entry point".to_owned()))?;
        if entry.workgroup_size_overrides.is_none() {
            return Ok(entry.workgroup_size.iter().product());
        }
        // The only override that sizes workgroups.
        const SIZE: &str = "WORKGROUP";
        let set = self.overrides.iter().find(|(name, _)| *name == SIZE).map(|(_, size)| *size);
        let default = || {
            let (_, size) = module.overrides.iter().find(|(_, item)| item.name.as_deref() == Some(SIZE))?;
            match module.global_expressions[size.init?] {
                Expression::Literal(Literal::U32(size)) => Some(size),
                _ => None,
            }
        };
        set.or_else(default).ok_or_else(|| wrong(format!("{SIZE} has no value")))
    }

    /// Whether the kernel computes with 16-bit floats.
    pub fn uses_f16(&self) -> bool {
        self.has_source("stage_f16") || self.has_source("matmul_f16") || self.uses_cooperative_matrices()
    }

    /// Whether the kernel needs subgroup operations.
    pub fn uses_subgroups(&self) -> bool {
        self.uses_cooperative_matrices() || self.has_source("subgroup")
    }

    /// Whether the kernel uses cooperative matrices. Neither browsers nor DirectX have these.
    pub fn uses_cooperative_matrices(&self) -> bool {
        self.has_source("cooperative")
    }

    fn has_source(&self, part_of_name: &str) -> bool {
        self.sources.iter().any(|source| source.name.contains(part_of_name))
    }
}

/// The key of a pipeline: small, compared and hashed for every dispatch. The kernel that it stands for is assembled
/// once.
pub trait PipelineKey: Clone + Eq + Hash + Send + 'static {
    /// The kernel.
    fn kernel(&self) -> Kernel;
}

impl PipelineKey for Kernel {
    fn kernel(&self) -> Kernel {
        self.clone()
    }
}

/// A pipeline ready to be dispatched.
#[derive(Debug)]
pub(super) struct Pipeline {
    pub(super) name: &'static str,
    pub(super) bindings: &'static [Access],
    pub(super) raw: wgpu::ComputePipeline,
    pub(super) layout: Arc<Layout>,
}

/// A bind-group layout and its pipeline layout, shared by all pipelines with the same bindings.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) id: usize,
    pub(super) bind_group: wgpu::BindGroupLayout,
    pipeline: wgpu::PipelineLayout,
}

/// A pipeline that exists, or that a thread is creating.
type PipelineCell = Arc<OnceLock<Arc<Pipeline>>>;

/// All pipelines of a device, created on first use.
#[derive(Debug, Default)]
pub(super) struct Pipelines {
    /// Created outside of the lock, so that several threads can create some at a time.
    made: Lock<HashMap<Kernel, PipelineCell>>,
    /// The same by their keys: for each type of key a map of its own.
    by_key: Lock<HashMap<TypeId, Box<dyn Any + Send>, FixedState>>,
    layouts: Lock<HashMap<&'static [Access], Arc<Layout>>>,
}

impl Pipelines {
    /// The pipeline of a key. Finding one that was made allocates nothing.
    pub(super) fn get<S: PipelineKey>(&self, builder: &PipelineBuilder<'_>, key: &S) -> Arc<Pipeline> {
        if let Some(pipeline) = self.find(key) {
            return pipeline;
        }
        let pipeline = self.make(builder, key.kernel());
        let mut by_key = self.by_key.lock();
        let map = by_key
            .entry(TypeId::of::<S>())
            .or_insert_with(|| Box::new(HashMap::<S, Arc<Pipeline>, FixedState>::default()));
        if let Some(map) = map.downcast_mut::<HashMap<S, Arc<Pipeline>, FixedState>>() {
            map.insert(key.clone(), pipeline.clone());
        }
        pipeline
    }

    fn find<S: PipelineKey>(&self, key: &S) -> Option<Arc<Pipeline>> {
        let by_key = self.by_key.lock();
        by_key.get(&TypeId::of::<S>())?.downcast_ref::<HashMap<S, Arc<Pipeline>, FixedState>>()?.get(key).cloned()
    }

    /// The pipeline of a kernel.
    pub(super) fn make(&self, builder: &PipelineBuilder<'_>, kernel: Kernel) -> Arc<Pipeline> {
        let cell = self.made.lock().entry(kernel.clone()).or_default().clone();
        cell.get_or_init(|| Arc::new(builder.make(&kernel, self.layout(builder, kernel.bindings)))).clone()
    }

    fn layout(&self, builder: &PipelineBuilder<'_>, bindings: &'static [Access]) -> Arc<Layout> {
        let mut layouts = self.layouts.lock();
        let id = layouts.len();
        layouts.entry(bindings).or_insert_with(|| Arc::new(builder.layout(bindings, id))).clone()
    }

    pub(super) fn kernels(&self) -> Vec<Kernel> {
        self.made.lock().keys().cloned().collect()
    }
}

/// What pipelines are made with.
pub(super) struct PipelineBuilder<'a> {
    pub(super) device: &'a wgpu::Device,
    pub(super) capabilities: &'a Capabilities,
    pub(super) cache: Option<&'a wgpu::PipelineCache>,
    /// Kernels pack and unpack f16 in integer arithmetic.
    #[cfg(not(target_arch = "wasm32"))]
    pub(super) emulates_f16: bool,
}

impl PipelineBuilder<'_> {
    fn layout(&self, bindings: &[Access], id: usize) -> Layout {
        let device = self.device;
        let entry = |binding: usize, ty: wgpu::BufferBindingType, dynamic: bool| wgpu::BindGroupLayoutEntry {
            binding: binding as u32,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: dynamic, min_binding_size: None },
            count: None,
        };
        let mut entries: Vec<_> = bindings
            .iter()
            .enumerate()
            .map(|(binding, access)| {
                entry(binding, wgpu::BufferBindingType::Storage { read_only: *access == Access::Read }, false)
            })
            .collect();
        entries.push(entry(bindings.len(), wgpu::BufferBindingType::Uniform, true));
        let bind_group =
            device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries });
        let pipeline = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: None,
            bind_group_layouts: &[Some(&bind_group)],
            immediate_size: 0,
        });
        Layout { id, bind_group, pipeline }
    }

    #[cfg(target_arch = "wasm32")]
    fn wgsl(&self, kernel: &Kernel) -> String {
        kernel.wgsl(true)
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn wgsl(&self, kernel: &Kernel) -> String {
        let text = kernel.wgsl(false);
        if !self.emulates_f16 || !text.contains("pack2x16float(") {
            return text;
        }
        text.replace("unpack2x16float(", "unpack_halves(").replace("pack2x16float(", "pack_halves(") + HALF_BITS.text
    }

    fn make(&self, kernel: &Kernel, layout: Arc<Layout>) -> Pipeline {
        let Self { device, capabilities, cache, .. } = *self;
        debug_assert!(capabilities.subgroups || !kernel.uses_subgroups(), "{} needs subgroups", kernel.name);
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(kernel.label),
            source: wgpu::ShaderSource::Wgsl(self.wgsl(kernel).into()),
        };
        // SAFETY: the shaders are this crate's own. Every op proves its indices from the shapes it checks before it
        // dispatches, and the guard-zone tests run each specialisation over shapes around its tile sizes. The checks
        // that this leaves out (bounds clamps, loop bounding) cost up to 40 % of a matrix product.
        let module = unsafe { device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) };
        let constants: Vec<_> = kernel.overrides.iter().map(|(name, value)| (*name, f64::from(*value))).collect();
        let raw = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(kernel.label),
            layout: Some(&layout.pipeline),
            module: &module,
            entry_point: Some(kernel.name),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &constants,
                // Kernels write workgroup memory before they read it.
                zero_initialize_workgroup_memory: false,
            },
            cache,
        });
        Pipeline { name: kernel.label, bindings: kernel.bindings, raw, layout }
    }
}
