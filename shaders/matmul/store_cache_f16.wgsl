// Writes keys and values in f16, two in a u32. `i` counts fours.
@group(0) @binding(4) var<storage, read_write> keys: array<vec2<u32>>;
@group(0) @binding(5) var<storage, read_write> values: array<vec2<u32>>;

fn store_key4(i: u32, four: vec4<f32>) {
    keys[i] = vec2(pack2x16float(four.xy), pack2x16float(four.zw));
}

fn store_value4(i: u32, four: vec4<f32>) {
    values[i] = vec2(pack2x16float(four.xy), pack2x16float(four.zw));
}
