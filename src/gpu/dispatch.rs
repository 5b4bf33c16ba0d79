//! What a dispatch is recorded with: bindings, parameters, a grid and a cost.

use super::memory::Buffer;

/// Size of one dispatch's parameter slot: WebGPU's default alignment of dynamic uniform offsets.
pub const MAX_PARAMS_BYTES: usize = 256;

/// Slots in the parameter buffer, and so dispatches in one submission. With timestamps two queries each; query sets
/// hold at most 4096.
pub(super) const MAX_DISPATCHES: usize = 2048;

pub(super) const PARAMS_BUFFER_BYTES: u64 = (MAX_DISPATCHES * MAX_PARAMS_BYTES) as u64;

/// WebGPU's limit on each dimension of a grid.
pub(crate) const MAX_GRID: u32 = 65535;

/// The least a dispatch must move and compute: the floor that its time is compared with.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    /// Bytes read and written, each once.
    pub bytes: f64,
    /// Operations; a multiply-add counts as two.
    pub flops: f64,
}

/// A range of a buffer.
#[derive(Debug, Clone, Copy)]
pub struct Binding<'a> {
    /// The buffer.
    pub buffer: &'a Buffer,
    /// Start, in bytes; a multiple of the device's storage alignment.
    pub offset: u64,
    /// Length, in bytes; a multiple of 4.
    pub bytes: u64,
}

impl Binding<'_> {
    /// The same including the guard zone after it: drivers drop accesses beyond a binding, which would hide them from
    /// the guards.
    pub(super) fn with_guard_zone(&self) -> Self {
        Self { bytes: self.buffer.bytes() - self.offset, ..*self }
    }
}

/// The grid for at least `count` workgroups: one row, or several where one would be too long. Kernels number their
/// workgroups `id.x + id.y * num_workgroups.x` and leave when that is past the end.
pub fn grid_1d(count: usize) -> [u32; 3] {
    let count = count.max(1) as u64;
    let rows = count.div_ceil(u64::from(MAX_GRID));
    [count.div_ceil(rows) as u32, rows as u32, 1]
}

#[cfg(test)]
mod tests {
    use super::grid_1d;

    #[test]
    fn a_grid_covers_its_count_within_the_limits() {
        for count in [0, 1, 2, 65535, 65536, 65537, 1 << 20, 256_000 * 8] {
            let [x, y, z] = grid_1d(count);
            assert!(x <= 65535 && y <= 65535 && z == 1);
            assert!(x as usize * y as usize >= count && (x as usize * y as usize) < count.max(1) + y as usize);
        }
    }
}
