// Weight reader: f16, two in a u32. A row has `stride` groups of four; the end of the last one is zero.
@group(0) @binding(1) var<storage, read> weights: array<vec2<u32>>;

// What 32 weights of a row share: nothing here.
fn weight_scale(row: u32, group: u32, stride: u32) -> vec2<f32> {
    return vec2(1.0, 0.0);
}

fn scaled_weight4(row: u32, k4: u32, stride: u32, scale: vec2<f32>) -> vec4<f32> {
    let word = weights[row * stride + k4];
    return vec4(unpack2x16float(word.x), unpack2x16float(word.y));
}

fn weight4(row: u32, k4: u32, stride: u32) -> vec4<f32> {
    return scaled_weight4(row, k4, stride, vec2(1.0, 0.0));
}
