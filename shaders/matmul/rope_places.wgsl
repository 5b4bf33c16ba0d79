// Rows anywhere: places.wgsl has written a line of cos_sin for each, d angles and the row of the cache, as a float.
fn angles_start(m: u32) -> u32 {
    return m * (params.head_dim + 4u);
}

fn cache_row(m: u32) -> u32 {
    return u32(cos_sin[(m * (params.head_dim + 4u) + params.head_dim) >> 2u].x);
}
