// Weight reader: f32. A row is `stride` vec4s, the tail of the last one zero.
@group(0) @binding(1) var<storage, read> weights: array<vec4<f32>>;

// No data is shared by 32 weights here.
fn weight_scale(row: u32, group: u32, stride: u32) -> vec2<f32> {
    return vec2(1.0, 0.0);
}

fn scaled_weight4(row: u32, k4: u32, stride: u32, scale: vec2<f32>) -> vec4<f32> {
    return weights[row * stride + k4];
}

// Weights 4 k4 .. 4 k4 + 3 of a row; `stride` is the row length in vec4s.
fn weight4(row: u32, k4: u32, stride: u32) -> vec4<f32> {
    return weights[row * stride + k4];
}
