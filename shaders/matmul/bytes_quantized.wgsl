// Weights as packed bytes, for dot products of four pairs at a time: integers of BITS bits (row_quantized.wgsl). In a
// word of eight columns the even ones are a byte apart, and so are the odd ones: a mask extracts four at once.
// Words 2 i and 2 i + 1 have the even and the odd ones of columns 8 i .. 8 i + 7.

// Columns 16 half .. 16 half + 15 of a row's group of 32.
fn group_bytes(loaded: RowGroup, half: u32) -> vec4<u32> {
    let low = select(loaded.low.xy, loaded.low.zw, half == 1u);
    var q = vec4(low.x, low.x >> 4u, low.y, low.y >> 4u) & vec4(0x0f0f0f0fu);
    // High bits are spread over the bytes: those of column 2 i go to byte i.
    if BITS == 5u {
        let bits = vec4(loaded.high.x) >> (vec4(0u, 1u, 8u, 9u) + 16u * half);
        q |= ((bits & vec4(1u)) << vec4(4u)) | ((bits & vec4(4u)) << vec4(10u)) | ((bits & vec4(16u)) << vec4(16u))
            | ((bits & vec4(64u)) << vec4(22u));
    }
    if BITS == 6u {
        let bits = vec4(select(loaded.high.x, loaded.high.y, half == 1u)) >> vec4(0u, 2u, 16u, 18u);
        q |= ((bits & vec4(3u)) << vec4(4u)) | ((bits & vec4(0x30u)) << vec4(8u)) | ((bits & vec4(0x300u)) << vec4(12u))
            | ((bits & vec4(0x3000u)) << vec4(16u));
        // Less 32: what was the highest bit is the opposite of the sign.
        q ^= vec4(0x20202020u);
        let sign = q & vec4(0x20202020u);
        q |= (sign << vec4(1u)) | (sign << vec4(2u));
    }
    return q;
}

// The arguments of add_scaled: scale and minimum, or, for 6 bits, the scales of the halves.
fn byte_scales(loaded: RowGroup) -> vec2<f32> {
    if BITS == 6u {
        return group_scales(loaded);
    }
    return vec2(group_scales(loaded).x, group_offsets(loaded).x);
}

// sums + the dot products of a group of a row of x with four rows of W: `low` and `high` are those of the halves'
// integers, `x` has the scale of x and the sum of its elements, `first` and `second` what byte_scales gives.
fn add_scaled(
    sums: vec4<f32>,
    low: vec4<i32>,
    high: vec4<i32>,
    x: vec2<f32>,
    first: vec4<f32>,
    second: vec4<f32>,
) -> vec4<f32> {
    if BITS == 6u {
        return fma(vec4(x.x), fma(vec4<f32>(low), first, vec4<f32>(high) * second), sums);
    }
    return fma(vec4(x.y), second, fma(vec4<f32>(low + high), x.x * first, sums));
}
