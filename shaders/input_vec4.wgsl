// Activation reader: rows of f32 whose length is a multiple of 4, and the gain of the norm before the product.
@group(0) @binding(0) var<storage, read> input: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> gain: array<vec4<f32>>;

// Elements 4 k4 .. 4 k4 + 3 of a row of k.
fn input4(row: u32, k4: u32, k: u32) -> vec4<f32> {
    return input[row * (k >> 2u) + k4];
}

fn gain4(k4: u32, k: u32) -> vec4<f32> {
    return gain[k4];
}
