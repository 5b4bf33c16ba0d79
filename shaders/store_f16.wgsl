// Writes keys and values in f16, two in a u32. `i` counts pairs.
@group(0) @binding(3) var<storage, read_write> keys: array<u32>;
@group(0) @binding(4) var<storage, read_write> values: array<u32>;

fn store_key2(i: u32, pair: vec2<f32>) {
    keys[i] = pack2x16float(pair);
}

fn store_value2(i: u32, pair: vec2<f32>) {
    values[i] = pack2x16float(pair);
}
