// Weights as packed bytes, for dot products of four pairs at a time: q8, as stored (row_q8.wgsl).
// Columns 16 half .. 16 half + 15 of a row's group of 32.
fn group_bytes(loaded: RowGroup, half: u32) -> vec4<u32> {
    if half == 0u {
        return loaded.first;
    }
    return loaded.second;
}

// The arguments of add_scaled.
fn byte_scales(loaded: RowGroup) -> vec2<f32> {
    return group_scales(loaded);
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
    return fma(vec4<f32>(low + high), x.x * first, sums);
}
