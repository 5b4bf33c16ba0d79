// Logits as numbers that can be compared.

const LOWEST: f32 = -3.402823e38;

// A logit made finite: NaN and minus infinity are the lowest there is. NaN is detected by its bits, since compilers may
// assume that there is none.
fn finite(value: f32) -> f32 {
    let is_nan = (bitcast<u32>(value) & 0x7fffffffu) > 0x7f800000u;
    return select(clamp(value, LOWEST, -LOWEST), LOWEST, is_nan);
}

// An integer that orders as the float does.
fn key(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    return select(bits | 0x80000000u, ~bits, (bits >> 31u) == 1u);
}
