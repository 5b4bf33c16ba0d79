// y = x W^T for few rows of x and quantised weights: a workgroup computes 4 BLOCKS rows of W against one row of x. Each
// of its invocations takes every WORKGROUP-th group of 32 columns. The group is contiguous
// (64 bytes of q4 for four rows) and read 16 bytes at a time; neighbouring invocations read neighbouring groups.
// Weights are multiplied as integers; scales are applied to the sum of 32 products. Reads b(W), and x once for every 4
// BLOCKS rows.
// Dispatch: (ceil(n / (4 BLOCKS)) folded over x and y, m as z).
@compute @workgroup_size(WORKGROUP)
fn matvec_blocks(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                 @builtin(local_invocation_index) local: u32) {
    let n = 4u * BLOCKS * (group.x + group.y * groups.x);
    let m = group.z;
    // The same for the whole workgroup, so the barriers below stay uniform.
    if n >= params.n || m >= row_count() {
        return;
    }
    let lhs_row = lhs_row_at(input_row(m));
    let last_row4 = (params.n - 1u) >> 2u;
    let fours = (params.k + 3u) >> 2u;
    var sums: array<vec4<f32>, BLOCKS>;
    var squares = 0.0;
    for (var group32 = local; 8u * group32 < fours; group32 += WORKGROUP) {
        var x: array<vec4<f32>, 8>;
        var total = 0.0;
        for (var i = 0u; i < 8u; i++) {
            let k4 = 8u * group32 + i;
            let inside = min(k4, fours - 1u);
            var four = select(vec4(0.0), lhs4(lhs_row, lhs_column_at(inside)), k4 < fours);
            if NORM == 1u {
                squares += dot(four, four);
                four *= normed_gain(inside);
            }
            x[i] = four;
            total += four.x + four.y + four.z + four.w;
        }
        for (var b = 0u; b < BLOCKS; b++) {
            load_block(b, min((n >> 2u) + b, last_row4), group32, params.weight_stride, params.n);
            var dots = vec4(0.0);
            for (var i = 0u; i < 8u; i++) {
                let word = 4u * i / PER_WORD;
                let within = 4u * i % PER_WORD;
                let loaded = words[b][word];
                dots = fma(vec4(x[i].x), block_column(b, word, loaded, within), dots);
                dots = fma(vec4(x[i].y), block_column(b, word, loaded, within + 1u), dots);
                dots = fma(vec4(x[i].z), block_column(b, word, loaded, within + 2u), dots);
                dots = fma(vec4(x[i].w), block_column(b, word, loaded, within + 3u), dots);
            }
            sums[b] = fma(block_scale(b), dots, fma(block_offset(b), vec4(total), sums[b]));
        }
    }
    var scale = 1.0;
    if NORM == 1u {
        scale = normed_scale(workgroup_sum4(vec4(squares), local).x);
    }
    for (var b = 0u; b < BLOCKS; b++) {
        let sum = workgroup_sum4(sums[b], local);
        if local == 0u && n + 4u * b < params.n {
            store_sums4(m, n + 4u * b, scale * sum);
        }
    }
}
