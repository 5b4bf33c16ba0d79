// Matrices of 8 x 8 that a subgroup holds together, and tiles to load them from. Metal loads from scalars only.
const SIZE: u32 = 8u;
alias Left = coop_mat8x8<f16, A>;
alias Right = coop_mat8x8<f16, B>;
alias Sums = coop_mat8x8<f32, C>;

// An element of a tile, and the number of them that hold four values.
alias Element = f16;
const PER_FOUR: u32 = 4u;

fn put_lhs(at: u32, four: vec4<f16>) {
    for (var i = 0u; i < 4u; i++) {
        lhs_tile[4u * at + i] = four[i];
    }
}

fn put_weight(at: u32, four: vec4<f16>) {
    for (var i = 0u; i < 4u; i++) {
        weight_tile[4u * at + i] = four[i];
    }
}
