//! Whether a Vulkan device has instructions for dot products of 8-bit integers.

use ash::vk;
use wgpu::hal::api::Vulkan;

/// Whether the driver reports `integerDotProduct4x8BitPackedSignedAccelerated`. `false` where the adapter is not
/// Vulkan's.
pub(super) fn are_accelerated(adapter: &wgpu::Adapter) -> bool {
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
