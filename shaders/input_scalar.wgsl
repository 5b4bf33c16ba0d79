// Activation reader: rows of f32 of any length, zeros past the end, and the gain of the norm before the product.
@group(0) @binding(0) var<storage, read> input: array<f32>;
@group(0) @binding(6) var<storage, read> gain: array<f32>;

fn input4(row: u32, k4: u32, k: u32) -> vec4<f32> {
    let start = row * k;
    let last = k - 1u;
    let i = vec4(4u * k4) + vec4(0u, 1u, 2u, 3u);
    let j = min(i, vec4(last));
    let value = vec4(input[start + j.x], input[start + j.y], input[start + j.z], input[start + j.w]);
    return select(vec4(0.0), value, i <= vec4(last));
}

// What is past the end is multiplied with a zero.
fn gain4(k4: u32, k: u32) -> vec4<f32> {
    let j = min(vec4(4u * k4) + vec4(0u, 1u, 2u, 3u), vec4(k - 1u));
    return vec4(gain[j.x], gain[j.y], gain[j.z], gain[j.w]);
}
