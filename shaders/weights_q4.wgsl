// Weight reader: q4. Groups of 32 along the row: weight = minimum + scale * q, q unsigned 4 bit, eight in a u32 from the
// low end; scale and minimum f16, together in a u32. Blocks of four rows that take turns, a group each; `stride` is the row
// length in fours, a multiple of 8.
@group(0) @binding(1) var<storage, read> weights: array<u32>;
@group(0) @binding(2) var<storage, read> scales: array<u32>;

fn group_index(row: u32, group: u32, stride: u32) -> u32 {
    return 4u * ((row >> 2u) * (stride >> 3u) + group) + (row & 3u);
}

// What 32 weights of a row have in common: their scale and minimum.
fn weight_scale(row: u32, group: u32, stride: u32) -> vec2<f32> {
    return unpack2x16float(scales[group_index(row, group, stride)]);
}

fn scaled_weight4(row: u32, k4: u32, stride: u32, scale: vec2<f32>) -> vec4<f32> {
    let word = weights[4u * group_index(row, k4 >> 3u, stride) + ((k4 >> 1u) & 3u)] >> ((k4 & 1u) << 4u);
    let q = vec4<f32>(vec4<u32>(word & 15u, (word >> 4u) & 15u, (word >> 8u) & 15u, (word >> 12u) & 15u));
    return fma(vec4(scale.x), q, vec4(scale.y));
}

fn weight4(row: u32, k4: u32, stride: u32) -> vec4<f32> {
    return scaled_weight4(row, k4, stride, weight_scale(row, k4 >> 3u, stride));
}
