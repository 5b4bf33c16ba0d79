// Writes keys and values of 8 bits. Four neighbouring elements are integers of 7 bits, from -63 to 63, times a power of
// two, the least from 2^-11 to 2^4 that keeps them in that range; larger values are clamped. A word has the integers
// from its low end and the exponent plus 11 in its four high bits. A group is what one invocation stores. `i` counts
// fours.
@group(0) @binding(4) var<storage, read_write> keys: array<u32>;
@group(0) @binding(5) var<storage, read_write> values: array<u32>;

fn packed(four: vec4<f32>) -> u32 {
    let magnitudes = abs(four);
    let largest = max(max(magnitudes.x, magnitudes.y), max(magnitudes.z, magnitudes.w));
    // Rounded up to a power of two: its exponent in an f32 is that of the step, plus 127.
    let exponent = clamp((bitcast<u32>(largest / 63.0) + 0x7FFFFFu) >> 23u, 116u, 131u);
    let q = vec4<i32>(clamp(round(four * bitcast<f32>((254u - exponent) << 23u)), vec4(-63.0), vec4(63.0)));
    let bits = bitcast<vec4<u32>>(q) & vec4(127u);
    return bits.x | (bits.y << 7u) | (bits.z << 14u) | (bits.w << 21u) | ((exponent - 116u) << 28u);
}

fn store_key4(i: u32, four: vec4<f32>) {
    keys[i] = packed(four);
}

fn store_value4(i: u32, four: vec4<f32>) {
    values[i] = packed(four);
}
