// Matrices of 8 x 8 that a subgroup holds together, and workgroup memory to load them from and to store them to. Metal
// takes scalars only.
const SIZE: u32 = 8u;
alias Left = coop_mat8x8<f16, A>;
alias Right = coop_mat8x8<f16, B>;
alias Sums = coop_mat8x8<f32, C>;

// Elements of workgroup memory, and the number of them that hold four values.
alias Element = f16;
alias Score = f32;
const PER_FOUR: u32 = 4u;

fn put(at: u32, four: vec4<f16>) {
    for (var i = 0u; i < 4u; i++) {
        tiles[4u * at + i] = four[i];
    }
}

fn score4(at: u32) -> vec4<f32> {
    return vec4(scores[4u * at], scores[4u * at + 1u], scores[4u * at + 2u], scores[4u * at + 3u]);
}

fn put_score4(at: u32, four: vec4<f32>) {
    for (var i = 0u; i < 4u; i++) {
        scores[4u * at + i] = four[i];
    }
}
