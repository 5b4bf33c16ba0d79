// Writes keys and values in f32. `i` counts pairs.
@group(0) @binding(3) var<storage, read_write> keys: array<vec2<f32>>;
@group(0) @binding(4) var<storage, read_write> values: array<vec2<f32>>;

fn store_key2(i: u32, pair: vec2<f32>) {
    keys[i] = pair;
}

fn store_value2(i: u32, pair: vec2<f32>) {
    values[i] = pair;
}
