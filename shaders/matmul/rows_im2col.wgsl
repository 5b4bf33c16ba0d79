// Row map of a convolution: rows are pixels, from `first_row` on. Also an image's own bias (where `bias_stride` is not
// 0), and the map that is added to the result.
@group(0) @binding(5) var<storage, read> residual: array<f32>;

fn row_count() -> u32 {
    return params.m;
}

fn input_row(m: u32) -> u32 {
    return params.first_row + m;
}

fn output_row(m: u32) -> u32 {
    return params.first_row + m;
}

fn bias_start(m: u32) -> u32 {
    if params.bias_stride == 0u {
        return 0u;
    }
    return (params.first_row + m) / params.pixels_per_image * params.bias_stride;
}

fn residual_at(at: u32) -> f32 {
    return residual[at];
}
