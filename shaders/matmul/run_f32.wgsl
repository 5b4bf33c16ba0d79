// Run reader: f32, eight neighbouring columns of a row (after weights_f32.wgsl).
struct Run {
    first: vec4<f32>,
    second: vec4<f32>,
}

fn load_run(row: u32, k8: u32, stride: u32) -> Run {
    return Run(weight4(row, 2u * k8, stride), weight4(row, min(2u * k8 + 1u, stride - 1u), stride));
}

// A run that ends within the row.
fn load_whole_run(row: u32, k8: u32, stride: u32) -> Run {
    return Run(weight4(row, 2u * k8, stride), weight4(row, 2u * k8 + 1u, stride));
}

fn stage_run4(run: Run, j: u32) -> Staged {
    return stage(select(run.first, run.second, j == 1u));
}
