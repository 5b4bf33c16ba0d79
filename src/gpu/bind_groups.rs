//! Bind-group cache, keyed by layout and bindings.

use std::collections::{HashMap, HashSet};

use foldhash::fast::FixedState;

use super::dispatch::{Binding, MAX_PARAMS_BYTES};
use super::kernel::Layout;

/// Layout id, and (buffer id, offset, size in bytes) of each binding.
type BindGroupKey = (usize, [(u64, u64, u64); MAX_BINDINGS]);

/// WebGPU's default `maxStorageBuffersPerShaderStage`.
const MAX_BINDINGS: usize = 8;

/// Above this number, bind groups unused in the last [`RECENT_SUBMISSIONS`] are dropped.
const MAX_BIND_GROUPS: usize = 8192;
const RECENT_SUBMISSIONS: u64 = 4;

/// Bind groups by layout and bindings, so that none are created in the steady state.
#[derive(Debug, Default)]
pub(super) struct BindGroups {
    cache: HashMap<BindGroupKey, (wgpu::BindGroup, u64), FixedState>,
    submission: u64,
    /// Number of bind groups created.
    pub(super) created: u64,
}

impl BindGroups {
    /// The bind group of `bindings` and of a slot of `params`.
    pub(super) fn get(
        &mut self,
        device: &wgpu::Device,
        params: &wgpu::Buffer,
        layout: &Layout,
        bindings: &[Binding<'_>],
    ) -> wgpu::BindGroup {
        let mut key = (layout.id, [(0, 0, 0); MAX_BINDINGS]);
        for (slot, binding) in key.1.iter_mut().zip(bindings) {
            *slot = (binding.buffer.id(), binding.offset, binding.bytes);
        }
        let now = self.submission;
        let entry = self.cache.entry(key).or_insert_with(|| {
            self.created += 1;
            (create_bind_group(device, params, layout, bindings), now)
        });
        entry.1 = now;
        entry.0.clone()
    }

    /// Starts a submission. Drops the groups that bind `dropped` buffers, which would keep the buffers alive, and old
    /// ones if there are too many.
    pub(super) fn sweep(&mut self, submission: u64, dropped: &HashSet<u64>) {
        self.submission = submission;
        if !dropped.is_empty() {
            self.cache.retain(|(_, bindings), _| bindings.iter().all(|(buffer, ..)| !dropped.contains(buffer)));
        }
        if self.cache.len() > MAX_BIND_GROUPS {
            self.cache.retain(|_, (_, used)| *used + RECENT_SUBMISSIONS > submission);
        }
    }

    pub(super) fn clear(&mut self) {
        self.cache.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.cache.len()
    }
}

fn create_bind_group(
    device: &wgpu::Device,
    params: &wgpu::Buffer,
    layout: &Layout,
    bindings: &[Binding<'_>],
) -> wgpu::BindGroup {
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
            buffer: params,
            offset: 0,
            size: wgpu::BufferSize::new(MAX_PARAMS_BYTES as u64),
        }),
    });
    device.create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout: &layout.bind_group, entries: &entries })
}
