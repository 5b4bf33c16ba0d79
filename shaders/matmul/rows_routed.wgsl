// Row map of one expert: `routes[route_base]` rows, followed by their slots. A slot is token * top_k + choice. The
// expert's first matrices read the token's row (`route_divisor` = top_k), the last one the slot's row (1); all write
// the slot's row.
@group(0) @binding(5) var<storage, read> routes: array<u32>;

fn row_count() -> u32 {
    return min(routes[params.route_base], params.m);
}

fn input_row(m: u32) -> u32 {
    return routes[params.route_base + 1u + m] / params.route_divisor;
}

fn output_row(m: u32) -> u32 {
    return routes[params.route_base + 1u + m];
}

fn bias_start(m: u32) -> u32 {
    return 0u;
}

// No residual.
fn residual_at(at: u32) -> f32 {
    return 0.0;
}
