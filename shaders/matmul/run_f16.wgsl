// Run reader: f16, eight neighbouring columns of a row, staged as they are. After weights_f16.wgsl, whose binding it
// reads as f16. A row has `stride` groups of four.
@group(0) @binding(1) var<storage, read> half_weights: array<vec4<f16>>;

struct Run {
    first: vec4<f16>,
    second: vec4<f16>,
}

fn load_run(row: u32, k8: u32, stride: u32) -> Run {
    return Run(half_weights[row * stride + 2u * k8], half_weights[row * stride + min(2u * k8 + 1u, stride - 1u)]);
}

// A run that ends within the row.
fn load_whole_run(row: u32, k8: u32, stride: u32) -> Run {
    return Run(half_weights[row * stride + 2u * k8], half_weights[row * stride + 2u * k8 + 1u]);
}

fn stage_run4(run: Run, j: u32) -> Staged {
    return select(run.first, run.second, j == 1u);
}
