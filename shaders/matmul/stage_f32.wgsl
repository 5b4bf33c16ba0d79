// Tiles in workgroup memory are f32.
alias Staged = vec4<f32>;

fn stage(four: vec4<f32>) -> Staged {
    return four;
}

fn unstage(four: Staged) -> vec4<f32> {
    return four;
}
