//! Mistakes that Khronos' validation layer must report: scripts/truth.py runs them to see that the layer's checks are
//! active, since a layer that does not check is silent too.

use wgpu::hal::api::Vulkan;
use wgpu::hal::{CommandEncoder as _, Device as _};

use crate::common::open_gpu;

/// Two writes to the same bytes without a barrier between them. They are not submitted.
#[test]
#[ignore = "a mistake that the validation layer reports: scripts/truth.py"]
fn two_writes_without_a_barrier() {
    let gpu = open_gpu();
    let (device, queue) = gpu.wgpu();
    // SAFETY: the handles live as long as this function, and nothing recorded is submitted.
    unsafe {
        let device = device.as_hal::<Vulkan>().unwrap();
        let queue = queue.as_hal::<Vulkan>().unwrap();
        let descriptor = wgpu::hal::BufferDescriptor {
            label: None,
            size: 256,
            usage: wgpu::wgt::BufferUses::COPY_DST,
            memory_flags: wgpu::hal::MemoryFlags::empty(),
        };
        let buffer = device.create_buffer(&descriptor).unwrap();
        let mut encoder =
            device.create_command_encoder(&wgpu::hal::CommandEncoderDescriptor { label: None, queue: &queue }).unwrap();
        encoder.begin_encoding(None).unwrap();
        encoder.clear_buffer(&buffer, 0..256);
        encoder.clear_buffer(&buffer, 0..256);
        let commands = encoder.end_encoding().unwrap();
        encoder.reset_all([commands].into_iter());
        drop(encoder);
        device.destroy_buffer(buffer);
    }
}

/// A shader that writes past the end of its binding, which is a mistake where `MGM_WITHOUT` has `bounds-checks`: with
/// them the driver drops the write.
#[test]
#[ignore = "a mistake that the validation layer reports: scripts/truth.py"]
fn a_write_out_of_bounds() {
    const SHADER: &str = "
        @group(0) @binding(0) var<storage, read_write> values: array<u32>;
        @compute @workgroup_size(1) fn main(@builtin(workgroup_id) id: vec3u) { values[128u * (id.x + 1u)] = 1u; }";
    let gpu = open_gpu();
    let (device, queue) = gpu.wgpu();
    let descriptor = wgpu::ShaderModuleDescriptor { label: None, source: wgpu::ShaderSource::Wgsl(SHADER.into()) };
    // SAFETY: the write is past the binding and within the buffer.
    let module = unsafe { device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) };
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: None,
        layout: None,
        module: &module,
        entry_point: None,
        compilation_options: wgpu::PipelineCompilationOptions::default(),
        cache: None,
    });
    let buffer = device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: 1024,
        usage: wgpu::BufferUsages::STORAGE,
        mapped_at_creation: false,
    });
    let binding = wgpu::BufferBinding { buffer: &buffer, offset: 0, size: std::num::NonZeroU64::new(256) };
    let entries = [wgpu::BindGroupEntry { binding: 0, resource: wgpu::BindingResource::Buffer(binding) }];
    let layout = pipeline.get_bind_group_layout(0);
    let descriptor = wgpu::BindGroupDescriptor { label: None, layout: &layout, entries: &entries };
    let bindings = device.create_bind_group(&descriptor);
    let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        pass.set_pipeline(&pipeline);
        pass.set_bind_group(0, &bindings, &[]);
        pass.dispatch_workgroups(1, 1, 1);
    }
    queue.submit([encoder.finish()]);
    device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
}
