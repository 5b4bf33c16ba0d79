//! What wgpu does not tell of an adapter, asked of Vulkan itself. Other backends' adapters have nothing to tell.

use ash::vk;
use wgpu::hal::api::Vulkan;

/// Whether the driver reports `integerDotProduct4x8BitPackedSignedAccelerated`.
pub(super) fn native_dots(adapter: &wgpu::Adapter) -> bool {
    // SAFETY: the handle is used within this function, and nothing of it is destroyed.
    let Some(hal) = (unsafe { adapter.as_hal::<Vulkan>() }) else { return false };
    let instance = hal.shared_instance().raw_instance();
    let device = hal.raw_physical_device();
    // SAFETY: the physical device is of this instance.
    let version = unsafe { instance.get_physical_device_properties(device) }.api_version;
    if version < vk::API_VERSION_1_3 {
        return false;
    }
    let mut dots = vk::PhysicalDeviceShaderIntegerDotProductProperties::default();
    let mut properties = vk::PhysicalDeviceProperties2::default().push_next(&mut dots);
    // SAFETY: as above; wgpu opens no device of Vulkan 1.0, and 1.3 has both structures.
    unsafe { instance.get_physical_device_properties2(device, &mut properties) };
    dots.integer_dot_product4x8_bit_packed_signed_accelerated == vk::TRUE
}

/// The largest heap of a discrete GPU, in bytes.
pub(super) fn local_memory(adapter: &wgpu::Adapter) -> Option<u64> {
    if adapter.get_info().device_type != wgpu::DeviceType::DiscreteGpu {
        return None;
    }
    // SAFETY: as above.
    let hal = unsafe { adapter.as_hal::<Vulkan>() }?;
    let instance = hal.shared_instance().raw_instance();
    // SAFETY: both handles are valid while `hal` is.
    let memory = unsafe { instance.get_physical_device_memory_properties(hal.raw_physical_device()) };
    let heaps = memory.memory_heaps_as_slice().iter();
    heaps.filter(|heap| heap.flags.contains(vk::MemoryHeapFlags::DEVICE_LOCAL)).map(|heap| heap.size).max()
}
