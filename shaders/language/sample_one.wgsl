// Sampling parameters: those of one row, in the uniform block. Argmax needs none and takes several rows.

@group(0) @binding(PARAMS) var<uniform> params: Params;

// The number of a row among those with a state of their own.
fn drawn_row(row: u32) -> u32 {
    return 0u;
}

fn draws(row: u32) -> bool {
    return true;
}

// Whether the row needs a histogram of sample_split.wgsl.
fn has_histogram(row: u32, histogram: u32) -> bool {
    return true;
}

fn top_k(row: u32) -> u32 {
    return params.top_k;
}

fn top_p(row: u32) -> f32 {
    return params.top_p;
}

fn inverse_temperature(row: u32) -> f32 {
    return params.inverse_temperature;
}

fn draw(row: u32) -> f32 {
    return params.draw;
}

fn lowest_of_min_p(row: u32, maximum: f32) -> u32 {
    return 0u;
}

fn is_allowed(row: u32, token: u32) -> bool {
    return true;
}
