// Run reader: integers of BITS bits, 4 to 6, eight neighbouring columns of a row (after weights_quantized.wgsl).
struct Run {
    low: u32,
    high: u32,
    scale: vec2<u32>,
    k8: u32,
}

fn load_run(row: u32, k8: u32, stride: u32) -> Run {
    let group = k8 >> 2u;
    var run: Run;
    run.k8 = k8 & 3u;
    run.low = weights[4u * (32u * ((row >> 5u) * (stride >> 3u) + group) + (row & 31u)) + run.k8];
    if BITS == 5u {
        run.high = high_word(row, group, stride, 0u) >> (8u * run.k8);
    }
    if BITS == 6u {
        run.high = high_word(row, group, stride, run.k8 >> 1u) >> (16u * (run.k8 & 1u));
    }
    run.scale = load_scales(row, group, stride);
    return run;
}

fn load_whole_run(row: u32, k8: u32, stride: u32) -> Run {
    return load_run(row, k8, stride);
}

// Columns 4 j .. 4 j + 3 of the run; j < 2.
fn stage_run4(run: Run, j: u32) -> Staged {
    let scale = unpacked_scales(run.scale);
    var q = (vec4(run.low) >> vec4(vec4(0u, 4u, 8u, 12u) + 16u * j)) & vec4(15u);
    if BITS == 5u {
        q |= ((vec4(run.high) >> vec4(vec4(0u, 1u, 2u, 3u) + 4u * j)) & vec4(1u)) << vec4(4u);
    }
    if BITS == 6u {
        q |= ((vec4(run.high) >> vec4(vec4(0u, 2u, 4u, 6u) + 8u * j)) & vec4(3u)) << vec4(4u);
        return stage(select(scale.x, scale.y, run.k8 >= 2u) * (vec4<f32>(vec4<i32>(q)) - vec4(32.0)));
    }
    return stage(fma(vec4(scale.x), vec4<f32>(vec4<i32>(q)), vec4(scale.y)));
}
