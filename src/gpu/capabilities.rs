//! What an adapter offers, as far as kernels care.

/// The facts that choose kernel variants and split tensors. Read from the adapter, never assumed.
#[derive(Debug, Clone, PartialEq)]
pub struct Capabilities {
    /// 16-bit floats in shaders (`shader-f16`).
    pub shader_f16: bool,
    /// Subgroup operations in compute shaders.
    pub subgroups: bool,
    /// Smallest subgroup size the device may use.
    pub subgroup_min_size: u32,
    /// Largest subgroup size the device may use.
    pub subgroup_max_size: u32,
    /// Timestamps at pass boundaries.
    pub timestamps: bool,
    /// Largest storage binding, in bytes.
    pub max_binding_bytes: u64,
    /// Largest buffer, in bytes.
    pub max_buffer_bytes: u64,
    /// Workgroup memory, in bytes.
    pub max_workgroup_bytes: u32,
    /// Invocations in a workgroup.
    pub max_workgroup_invocations: u32,
    /// Alignment of a storage binding's offset, in bytes.
    pub storage_alignment: u64,
}

impl Capabilities {
    /// Reads what the kernels care about from a device's granted features and limits.
    pub(super) fn new(features: wgpu::Features, limits: &wgpu::Limits, info: &wgpu::AdapterInfo) -> Self {
        Self {
            shader_f16: features.contains(wgpu::Features::SHADER_F16),
            subgroups: features.contains(wgpu::Features::SUBGROUP),
            subgroup_min_size: info.subgroup_min_size,
            subgroup_max_size: info.subgroup_max_size,
            timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY),
            max_binding_bytes: limits.max_storage_buffer_binding_size,
            max_buffer_bytes: limits.max_buffer_size,
            max_workgroup_bytes: limits.max_compute_workgroup_storage_size,
            max_workgroup_invocations: limits.max_compute_invocations_per_workgroup,
            storage_alignment: u64::from(limits.min_storage_buffer_offset_alignment),
        }
    }

    /// The number of lanes of every subgroup, where there are subgroups and all have the same.
    pub fn subgroup_size(&self) -> Option<u32> {
        (self.subgroups && self.subgroup_min_size == self.subgroup_max_size).then_some(self.subgroup_max_size)
    }

    /// The largest piece a tensor may be cut into: one binding of one buffer, a multiple of 256 bytes.
    pub fn max_piece_bytes(&self) -> u64 {
        self.max_binding_bytes.min(self.max_buffer_bytes) & !255
    }
}
