// Keys and values in f16, two in a u32.
@group(0) @binding(1) var<storage, read> keys: array<vec2<u32>>;
@group(0) @binding(2) var<storage, read> values: array<vec2<u32>>;

fn key4(i: u32) -> vec4<f32> {
    return vec4(unpack2x16float(keys[i].x), unpack2x16float(keys[i].y));
}

fn value4(i: u32) -> vec4<f32> {
    return vec4(unpack2x16float(values[i].x), unpack2x16float(values[i].y));
}
