//! Bind groups by what they bind.

use std::collections::{HashMap, HashSet};

use super::Gpu;
use super::kernel::Pipeline;
use super::recorder::{Binding, MAX_PARAMS_BYTES};

/// The pipeline, and buffer, offset and bytes of each binding.
type BindGroupKey = (usize, [(u64, u64, u64); MAX_BINDINGS]);

/// WebGPU's default limit of storage buffers.
const MAX_BINDINGS: usize = 8;

/// Above this many, bind groups that were not used for a while are dropped.
const MAX_BIND_GROUPS: usize = 8192;

/// Bind groups by what they bind, so that the steady state creates none.
#[derive(Debug, Default)]
pub(super) struct BindGroups {
    made: HashMap<BindGroupKey, (wgpu::BindGroup, u64)>,
    submission: u64,
    /// How many were made.
    pub(super) count: u64,
}

impl BindGroups {
    pub(super) fn get(&mut self, gpu: &Gpu, pipeline: &Pipeline, bindings: &[Binding<'_>]) -> wgpu::BindGroup {
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

    /// Drops the groups that bind `dropped` buffers: they are useless and keep the buffers' memory.
    pub(super) fn sweep(&mut self, submission: u64, dropped: &HashSet<u64>) {
        self.submission = submission;
        if !dropped.is_empty() {
            self.made.retain(|(_, bindings), _| bindings.iter().all(|(buffer, ..)| !dropped.contains(buffer)));
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
