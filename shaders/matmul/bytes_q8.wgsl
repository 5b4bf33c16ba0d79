// Weights as packed bytes, for dot products of four pairs at a time: q8, as stored (weights_q8.wgsl). ALTERNATING: a
// pair of words has the even columns in the first and the odd ones in the second, instead of four and four.
const ALTERNATING: bool = false;

// Columns 8 pair .. 8 pair + 7 of a group of 32.
fn byte_pair(row: u32, group: u32, stride: u32, pair: u32) -> vec2<u32> {
    let at = 8u * group_index(row, group, stride) + 2u * pair;
    return vec2(weights[at], weights[at + 1u]);
}

// The dot product of a group: `low` and `high` are those of its halves' integers, `x` has the scale of x and the sum of
// its elements, `w` is what weight_scale gives.
fn scaled_sum(low: i32, high: i32, x: vec2<f32>, w: vec2<f32>) -> f32 {
    return x.x * w.x * f32(low + high);
}
