// Weight reader: q8. Groups of 32 along the row: weight = scale * q; q is a signed 8-bit integer, four in a u32; scale
// is f16, two in a u32. Rows are interleaved by 32, group by group; `stride` is the row length in fours, a multiple
// of 8.
@group(0) @binding(1) var<storage, read> weights: array<u32>;
@group(0) @binding(2) var<storage, read> scales: array<u32>;

fn group_index(row: u32, group: u32, stride: u32) -> u32 {
    return 32u * ((row >> 5u) * (stride >> 3u) + group) + (row & 31u);
}

// What 32 weights of a row share: their scale.
fn weight_scale(row: u32, group: u32, stride: u32) -> vec2<f32> {
    let at = group_index(row, group, stride);
    let pair = unpack2x16float(scales[at >> 1u]);
    return vec2(select(pair.x, pair.y, (at & 1u) == 1u), 0.0);
}

fn scaled_weight4(row: u32, k4: u32, stride: u32, scale: vec2<f32>) -> vec4<f32> {
    let word = bitcast<i32>(weights[8u * group_index(row, k4 >> 3u, stride) + (k4 & 7u)]);
    return scale.x * vec4<f32>(vec4<i32>((word << 24u) >> 24u, (word << 16u) >> 24u, (word << 8u) >> 24u, word >> 24u));
}

fn weight4(row: u32, k4: u32, stride: u32) -> vec4<f32> {
    return scaled_weight4(row, k4, stride, weight_scale(row, k4 >> 3u, stride));
}
