// Weight reader: integers of BITS bits, 4 to 6, in groups of 32 along the row (src/tensor/pack.rs). The low four bits
// are eight in a u32, from the low end; rows are interleaved by 32: 16 bytes of each. Scales and high bits:
// scales_quantized.wgsl.
@group(0) @binding(1) var<storage, read> weights: array<u32>;

// What 32 weights of a row share: see unpacked_scales.
fn weight_scale(row: u32, group: u32, stride: u32) -> vec2<f32> {
    return unpacked_scales(load_scales(row, group, stride));
}

fn scaled_weight4(row: u32, k4: u32, stride: u32, scale: vec2<f32>) -> vec4<f32> {
    let group = k4 >> 3u;
    let within = k4 & 7u; // four of the group
    let at = 4u * (32u * ((row >> 5u) * (stride >> 3u) + group) + (row & 31u)) + (within >> 1u);
    var q = (vec4(weights[at]) >> vec4(vec4(0u, 4u, 8u, 12u) + 16u * (within & 1u))) & vec4(15u);
    if BITS == 5u {
        q |= ((vec4(high_word(row, group, stride, 0u)) >> vec4(vec4(0u, 1u, 2u, 3u) + 4u * within)) & vec4(1u)) << vec4(4u);
    }
    if BITS == 6u {
        let high = high_word(row, group, stride, within >> 2u);
        q |= ((vec4(high) >> vec4(vec4(0u, 2u, 4u, 6u) + 8u * (within & 3u))) & vec4(3u)) << vec4(4u);
        return select(scale.x, scale.y, within >= 4u) * (vec4<f32>(q) - vec4(32.0));
    }
    return fma(vec4(scale.x), vec4<f32>(q), vec4(scale.y));
}

fn weight4(row: u32, k4: u32, stride: u32) -> vec4<f32> {
    return scaled_weight4(row, k4, stride, weight_scale(row, k4 >> 3u, stride));
}
