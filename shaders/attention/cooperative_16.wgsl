// Matrices of 16 x 16 that a subgroup holds together, and workgroup memory to load them from and to store them to.
const SIZE: u32 = 16u;
alias Left = coop_mat16x16<f16, A>;
alias Right = coop_mat16x16<f16, B>;
alias Sums = coop_mat16x16<f32, C>;

// Elements of workgroup memory, and the number of them that hold four values.
alias Element = vec4<f16>;
alias Score = vec4<f32>;
const PER_FOUR: u32 = 1u;

fn put(at: u32, four: vec4<f16>) {
    tiles[at] = four;
}

fn score4(at: u32) -> vec4<f32> {
    return scores[at];
}

fn put_score4(at: u32, four: vec4<f32>) {
    scores[at] = four;
}
