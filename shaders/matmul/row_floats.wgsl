// Row reader: f32 or f16 (after weights_f32.wgsl or weights_f16.wgsl), 32 columns of a row. They are loaded where they
// are used: as many registers as 32 columns would take are not there.
struct RowGroup {
    row: u32,
    k4: u32,
    stride: u32,
}

alias RowScales = u32;

fn load_row_group(row: u32, group: u32, stride: u32) -> RowGroup {
    return RowGroup(row, 8u * group, stride);
}

fn row_scales(loaded: RowGroup) -> RowScales {
    return 0u;
}

// Columns 4 j .. 4 j + 3; j < 8. Past the end of a row its last four, for which x is zero.
fn scaled_columns4(loaded: RowGroup, scales: RowScales, j: u32) -> vec4<f32> {
    return weight4(loaded.row, min(loaded.k4 + j, loaded.stride - 1u), loaded.stride);
}
