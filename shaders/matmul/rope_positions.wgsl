// Rows of one sequence: row m is at position first_position + m, in cos_sin as in the cache.
fn angles_start(m: u32) -> u32 {
    return (params.first_position + m) * params.head_dim;
}

fn cache_row(m: u32) -> u32 {
    return params.first_position + m;
}
