// Run reader: q8, eight neighbouring columns of a row (after weights_q8.wgsl).
struct Run {
    first: u32,
    second: u32,
    scale: f32,
}

fn load_run(row: u32, k8: u32, stride: u32) -> Run {
    let at = 8u * group_index(row, k8 >> 2u, stride) + 2u * (k8 & 3u);
    return Run(weights[at], weights[at + 1u], weight_scale(row, k8 >> 2u, stride).x);
}

fn load_whole_run(row: u32, k8: u32, stride: u32) -> Run {
    return load_run(row, k8, stride);
}

fn stage_run4(run: Run, j: u32) -> Staged {
    let word = bitcast<i32>(select(run.first, run.second, j == 1u));
    return stage(run.scale * vec4<f32>((vec4(word) << vec4(24u, 16u, 8u, 0u)) >> vec4(24u)));
}
