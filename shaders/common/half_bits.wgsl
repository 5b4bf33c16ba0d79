// pack2x16float and unpack2x16float in integer arithmetic, for devices without conversion instructions: llvmpipe on a
// processor without F16C. Exact for all halves; packing rounds to nearest even, beyond 65504 to infinity.
// Subnormal halves are converted through integers: f32 arithmetic may flush subnormal numbers to zero.
fn bits_of_half(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let magnitude = bits & 0x7fffffffu;
    let normal = min((magnitude + 0xfffu + ((magnitude >> 13u) & 1u) - 0x38000000u) >> 13u, 0x7c00u);
    // In units of the smallest subnormal half, 2^-24. `round` rounds to nearest even.
    let subnormal = u32(round(min(abs(x), 1.0) * 16777216.0));
    let finite = select(normal, subnormal, magnitude < 0x38800000u);
    return ((bits >> 16u) & 0x8000u) | select(finite, 0x7e00u, magnitude > 0x7f800000u);
}

fn half_of_bits(half: u32) -> f32 {
    let exponent = (half >> 10u) & 31u;
    let mantissa = half & 0x3ffu;
    let normal = ((exponent + 112u) << 23u) | (mantissa << 13u);
    let special = 0x7f800000u | (mantissa << 13u);
    let subnormal = bitcast<u32>(f32(mantissa) * 5.9604644775390625e-8);
    let magnitude = select(select(normal, special, exponent == 31u), subnormal, exponent == 0u);
    return bitcast<f32>(((half & 0x8000u) << 16u) | magnitude);
}

fn pack_halves(pair: vec2<f32>) -> u32 {
    return bits_of_half(pair.x) | (bits_of_half(pair.y) << 16u);
}

fn unpack_halves(packed: u32) -> vec2<f32> {
    return vec2(half_of_bits(packed), half_of_bits(packed >> 16u));
}
