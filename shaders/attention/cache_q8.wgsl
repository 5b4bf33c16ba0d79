// Keys and values of 8 bits (after values_q8.wgsl).
@group(0) @binding(1) var<storage, read> keys: array<u32>;
@group(0) @binding(2) var<storage, read> values: array<u32>;

fn key4(i: u32) -> vec4<f32> {
    return unpacked(keys[i]);
}

fn value4(i: u32) -> vec4<f32> {
    return unpacked(values[i]);
}
