// Row reader: q8 (see weights_q8.wgsl), 32 columns of a row.
@group(0) @binding(1) var<storage, read> weights: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> scales: array<u32>;

struct RowGroup {
    first: vec4<u32>,
    second: vec4<u32>,
    scale: f32,
}

fn load_row_group(row: u32, group: u32, stride: u32) -> RowGroup {
    let at = 32u * ((row >> 5u) * (stride >> 3u) + group) + (row & 31u);
    let pair = unpack2x16float(scales[at >> 1u]);
    return RowGroup(weights[2u * at], weights[2u * at + 1u], select(pair.x, pair.y, (at & 1u) == 1u));
}

// Columns 4 j .. 4 j + 3 as they are to be multiplied by group_scales; j < 8.
fn group_columns4(loaded: RowGroup, j: u32) -> vec4<f32> {
    let word = select(loaded.first[j & 3u], loaded.second[j & 3u], j >= 4u);
    let q = word ^ 0x80808080u; // unsigned, 128 more
    return vec4(f32(q & 0xFFu), f32((q >> 8u) & 0xFFu), f32((q >> 16u) & 0xFFu), f32(q >> 24u));
}

fn group_scales(loaded: RowGroup) -> vec2<f32> {
    return vec2(loaded.scale);
}

fn group_offsets(loaded: RowGroup) -> vec2<f32> {
    return vec2(-128.0 * loaded.scale);
}

// Scale and offset of all columns.
alias RowScales = vec2<f32>;

fn row_scales(loaded: RowGroup) -> RowScales {
    return vec2(1.0, -128.0) * loaded.scale;
}

// Weights of columns 4 j .. 4 j + 3; j < 8.
fn scaled_columns4(loaded: RowGroup, scales: RowScales, j: u32) -> vec4<f32> {
    return fma(vec4(scales.x), group_columns4(loaded, j), vec4(scales.y));
}
