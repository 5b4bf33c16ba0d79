// Writes keys and values in f32. `i` counts fours.
@group(0) @binding(4) var<storage, read_write> keys: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> values: array<vec4<f32>>;

fn store_key4(i: u32, four: vec4<f32>) {
    keys[i] = four;
}

fn store_value4(i: u32, four: vec4<f32>) {
    values[i] = four;
}
