// Keys and values of 8 bits, four neighbouring elements of a head in a word (matmul/store_cache_q8.wgsl): integers of 7
// bits, the first in the low bits, times a power of two. Its exponent plus 11 takes the four high bits.
fn unpacked(word: u32) -> vec4<f32> {
    let scale = bitcast<f32>(((word >> 28u) + 116u) << 23u);
    return scale * vec4<f32>(bitcast<vec4<i32>>(vec4(word) << vec4(25u, 18u, 11u, 4u)) >> vec4(25u));
}
