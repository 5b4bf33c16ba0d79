//! What an adapter offers, as far as kernels care.

/// The facts that choose kernel variants and split tensors. Read from the adapter, never assumed.
#[derive(Debug, Clone, PartialEq)]
pub struct Capabilities {
    /// 16-bit floats in shaders (`shader-f16`).
    pub shader_f16: bool,
    /// Two multiply-adds of f16 take the place of one of f32, and the compilers make such instructions of
    /// `matmul_f16` (KERNELS.md).
    pub packed_f16: bool,
    /// Subgroup operations in compute shaders.
    pub subgroups: bool,
    /// Smallest subgroup size the device may use.
    pub subgroup_min_size: u32,
    /// Largest subgroup size the device may use.
    pub subgroup_max_size: u32,
    /// Sizes of the cooperative matrices with f16 factors and f32 sums: 8, 16 or none.
    pub cooperative_sizes: Vec<u32>,
    /// Instructions for dot products of four pairs of signed 8-bit integers, in the hardware rather than emulated, as
    /// Vulkan's drivers report it. Metal has none; DirectX 12 does not say, and in a browser wgpu does not either
    /// ([`GpuOptions::browser_native_dots`](super::GpuOptions)).
    pub native_dots: bool,
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
    /// Memory of a discrete GPU, in bytes, if the driver reports it (Vulkan). Other programs may use part of it.
    pub local_memory: Option<u64>,
    /// Alignment of a storage binding's offset, in bytes.
    pub storage_alignment: u64,
}

impl Capabilities {
    /// GPUs in general, for plans: f16, subgroups of 32 to `subgroup_max_size`, cooperative matrices of these sizes.
    pub fn of_hardware(subgroup_max_size: u32, cooperative_sizes: Vec<u32>) -> Self {
        Self {
            shader_f16: true,
            packed_f16: false,
            subgroups: true,
            subgroup_min_size: 32,
            subgroup_max_size,
            cooperative_sizes,
            native_dots: false,
            timestamps: false,
            max_binding_bytes: (1 << 31) - 4,
            max_buffer_bytes: 1 << 34,
            max_workgroup_bytes: 32768,
            max_workgroup_invocations: 1024,
            local_memory: None,
            storage_alignment: 64,
        }
    }

    /// Reads what the kernels care about from a device's granted features and limits.
    pub(super) fn new(features: wgpu::Features, limits: &wgpu::Limits, adapter: &wgpu::Adapter) -> Self {
        let info = adapter.get_info();
        #[cfg(not(any(target_arch = "wasm32", target_vendor = "apple")))]
        let (native_dots, local_memory) = (super::vulkan::native_dots(adapter), super::vulkan::local_memory(adapter));
        #[cfg(any(target_arch = "wasm32", target_vendor = "apple"))]
        let (native_dots, local_memory) = (false, None);
        Self {
            shader_f16: features.contains(wgpu::Features::SHADER_F16),
            packed_f16: features.contains(wgpu::Features::SHADER_F16) && has_packed_f16(&info),
            subgroups: features.contains(wgpu::Features::SUBGROUP),
            subgroup_min_size: info.subgroup_min_size,
            subgroup_max_size: info.subgroup_max_size,
            cooperative_sizes: cooperative_sizes(features, adapter),
            native_dots,
            timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY),
            max_binding_bytes: limits.max_storage_buffer_binding_size,
            max_buffer_bytes: limits.max_buffer_size,
            max_workgroup_bytes: limits.max_compute_workgroup_storage_size,
            max_workgroup_invocations: limits.max_compute_invocations_per_workgroup,
            local_memory,
            storage_alignment: u64::from(limits.min_storage_buffer_offset_alignment),
        }
    }

    /// The size of subgroups, if there are subgroups and all have one size.
    pub fn subgroup_size(&self) -> Option<u32> {
        (self.subgroups && self.subgroup_min_size == self.subgroup_max_size).then_some(self.subgroup_max_size)
    }

    /// The largest shard a tensor may be cut into: one binding of one buffer, a multiple of 256 bytes.
    pub fn max_shard_bytes(&self) -> u64 {
        self.max_binding_bytes.min(self.max_buffer_bytes) & !255
    }
}

/// Whether a GPU has packed f16 arithmetic that is faster than f32. Not Intel, Adreno and Apple: their compilers make
/// one instruction of each multiply-add of f16. Not NVIDIA since Ampere: f16 has the rate of f32 there. Browsers do not
/// report the vendor.
fn has_packed_f16(info: &wgpu::AdapterInfo) -> bool {
    const AMD: u32 = 0x1002;
    const NVIDIA: u32 = 0x10de;
    let is_any_of = |parts: &[&str]| {
        let name = info.name.to_lowercase();
        parts.iter().any(|part| name.contains(part))
    };
    match info.vendor {
        // RDNA has subgroups of 32 and 64, GCN of 64. Of GCN, Vega has packed arithmetic.
        AMD => info.subgroup_min_size < info.subgroup_max_size || is_any_of(&["vega", "raven", "renoir", "radeon vii"]),
        // Turing's PCI devices: TU102 to TU106 and TU117, TU116.
        NVIDIA => matches!(info.device, 0x1e00..=0x1fff | 0x2180..=0x21ff),
        _ => false,
    }
}

fn cooperative_sizes(features: wgpu::Features, adapter: &wgpu::Adapter) -> Vec<u32> {
    let needed =
        wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX | wgpu::Features::SHADER_F16 | wgpu::Features::SUBGROUP;
    if !features.contains(needed) {
        return Vec::new();
    }
    let fits = |matrix: &wgpu::CooperativeMatrixProperties| {
        let types = (matrix.ab_type, matrix.cr_type);
        matrix.m_size == matrix.n_size
            && matrix.m_size == matrix.k_size
            && types == (wgpu::CooperativeScalarType::F16, wgpu::CooperativeScalarType::F32)
            && !matrix.saturating_accumulation
    };
    let mut sizes: Vec<_> = adapter
        .cooperative_matrix_properties()
        .iter()
        .filter(|matrix| fits(matrix))
        .map(|matrix| matrix.m_size)
        .collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}
