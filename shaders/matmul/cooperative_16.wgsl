// Matrices of 16 x 16 that a subgroup holds together, and tiles to load them from.
const SIZE: u32 = 16u;
alias Left = coop_mat16x16<f16, A>;
alias Right = coop_mat16x16<f16, B>;
alias Sums = coop_mat16x16<f32, C>;

// An element of a tile, and the number of them that hold four values.
alias Element = vec4<f16>;
const PER_FOUR: u32 = 1u;

fn put_lhs(at: u32, four: vec4<f16>) {
    lhs_tile[at] = four;
}

fn put_weight(at: u32, four: vec4<f16>) {
    weight_tile[at] = four;
}
