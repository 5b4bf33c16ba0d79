// Weights as packed bytes, for dot products of four pairs at a time: integers of BITS bits (weights_quantized.wgsl). In
// a word of eight columns the even ones are a byte apart, and so are the odd ones: a mask extracts four at once.
// ALTERNATING: a pair of words has the even columns in the first and the odd ones in the second, instead of four and
// four.
const ALTERNATING: bool = true;

// Columns 8 pair .. 8 pair + 7 of a group of 32.
fn byte_pair(row: u32, group: u32, stride: u32, pair: u32) -> vec2<u32> {
    let at = 4u * (32u * ((row >> 5u) * (stride >> 3u) + group) + (row & 31u)) + pair;
    var q = (vec2(weights[at]) >> vec2(0u, 4u)) & vec2(0x0f0f0f0fu);
    // High bits are spread over the bytes: those of column 2 i go to byte i.
    if BITS == 5u {
        let bits = (vec2(high_word(row, group, stride, 0u)) >> vec2(vec2(0u, 1u) + 8u * pair));
        q |= ((bits & vec2(1u)) << vec2(4u)) | ((bits & vec2(4u)) << vec2(10u)) | ((bits & vec2(16u)) << vec2(16u))
            | ((bits & vec2(64u)) << vec2(22u));
    }
    if BITS == 6u {
        let bits = (vec2(high_word(row, group, stride, pair >> 1u)) >> vec2(vec2(0u, 2u) + 16u * (pair & 1u)));
        q |= ((bits & vec2(3u)) << vec2(4u)) | ((bits & vec2(0x30u)) << vec2(8u)) | ((bits & vec2(0x300u)) << vec2(12u))
            | ((bits & vec2(0x3000u)) << vec2(16u));
        // Less 32: what was the highest bit is the opposite of the sign.
        q ^= vec2(0x20202020u);
        let sign = q & vec2(0x20202020u);
        q |= (sign << vec2(1u)) | (sign << vec2(2u));
    }
    return q;
}

// The dot product of a group: `low` and `high` are those of its halves' integers, `x` has the scale of x and the sum of
// its elements, `w` is what weight_scale gives.
fn scaled_sum(low: i32, high: i32, x: vec2<f32>, w: vec2<f32>) -> f32 {
    if BITS == 6u {
        return x.x * (w.x * f32(low) + w.y * f32(high));
    }
    return x.x * w.x * f32(low + high) + x.y * w.y;
}
