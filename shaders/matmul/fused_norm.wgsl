// RMS norm fused with a product: with s = 1 / sqrt(mean(x^2) + eps),
//     (s x g) W^T = s ((x g) W^T),
// so the kernel sums the squares of x while it multiplies.
override NORM: u32 = 0;
override UNIT_OFFSET: u32 = 0; // the stored gain is one less than the gain

fn normed_gain(k4: u32) -> vec4<f32> {
    return gain4(k4, params.k) + vec4(f32(UNIT_OFFSET));
}

fn normed_scale(squares: f32) -> f32 {
    return inverseSqrt(squares / f32(params.k) + params.eps);
}
