//! A Vulkan device whose buffer accesses are not checked.
//!
//! wgpu always asks Vulkan for robust buffer access. Two of Mesa's compilers then compare every address with the end of
//! the binding and split a load of 16 bytes into four (KERNELS.md has what that costs); the other drivers check for
//! free, or nearly: NVIDIA's own was measured to be as fast with the checks. The kernels of this crate stay within
//! their bindings, as tests with guard zones show, and nobody else's shader runs on the device.

use ash::vk;
use wgpu::hal::api::Vulkan;

/// Whether the driver's checks are expensive: those of NVK and of Honeykrisp.
pub(super) fn is_worth_it(adapter: &wgpu::AdapterInfo) -> bool {
    ["NVK", "Honeykrisp"].iter().any(|name| adapter.driver.contains(name))
}

/// Opens a device without robust buffer access. `None` where the adapter is not Vulkan's or the driver refuses: wgpu's
/// own way of opening it remains.
pub(super) fn open(
    adapter: &wgpu::Adapter,
    descriptor: &wgpu::DeviceDescriptor<'_>,
) -> Option<(wgpu::Device, wgpu::Queue)> {
    // SAFETY: the handle is used within this function, and nothing of it is destroyed.
    let hal = unsafe { adapter.as_hal::<Vulkan>() }?;
    let extensions = hal.required_device_extensions(descriptor.required_features);
    let mut features = hal.physical_device_features(&extensions, descriptor.required_features);
    let core = vk::PhysicalDeviceFeatures { robust_buffer_access: vk::FALSE, ..features.get_core() };
    let names: Vec<_> = extensions.iter().map(|name| name.as_ptr()).collect();
    let queue = vk::DeviceQueueCreateInfo::default().queue_family_index(QUEUE_FAMILY).queue_priorities(&[1.0]);
    let queues = [queue];
    let info = vk::DeviceCreateInfo::default().queue_create_infos(&queues).enabled_extension_names(&names);
    let mut info = features.add_to_device_create(info);
    info.p_enabled_features = &core;
    // SAFETY: `features` owns the structures of the chain, lives until the end of this function and is not read again
    // before the device is made; each begins with its type and a pointer to the next.
    unsafe {
        let mut next = info.p_next.cast_mut().cast::<vk::BaseOutStructure<'_>>();
        while !next.is_null() {
            if (*next).s_type == vk::StructureType::PHYSICAL_DEVICE_ROBUSTNESS_2_FEATURES_EXT {
                (*next.cast::<vk::PhysicalDeviceRobustness2FeaturesEXT<'_>>()).robust_buffer_access2 = vk::FALSE;
            }
            next = (*next).p_next;
        }
    }
    let instance = hal.shared_instance().raw_instance();
    // SAFETY: the extensions and features are those that wgpu chose for this physical device, with two features less;
    // wgpu takes the device over and destroys it; one that it refuses is never destroyed, which does no harm. wgpu
    // relies on the two features only to keep shaders within bindings.
    let opened = unsafe {
        let device = instance.create_device(hal.raw_physical_device(), &info, None).ok()?;
        hal.device_from_raw(
            device,
            None,
            &extensions,
            descriptor.required_features,
            &descriptor.required_limits,
            &descriptor.memory_hints,
            QUEUE_FAMILY,
            0,
        )
        .ok()?
    };
    drop(hal);
    // SAFETY: the device was opened from this adapter with the features of `descriptor`.
    unsafe { adapter.create_device_from_hal(opened, descriptor) }.ok()
}

/// wgpu always uses the first one.
const QUEUE_FAMILY: u32 = 0;
