// Tiles in workgroup memory are f16, half the bytes; sums stay f32. Values beyond f16's range are clamped to it.
alias Staged = vec4<f16>;

fn stage(four: vec4<f32>) -> Staged {
    return vec4<f16>(clamp(four, vec4(-65504.0), vec4(65504.0)));
}

fn unstage(four: Staged) -> vec4<f32> {
    return vec4<f32>(four);
}
