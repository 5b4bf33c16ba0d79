// y = x W^T for software adapters without subgroups. There a barrier switches between all invocations, so the kernel
// uses no workgroup memory: an invocation computes four columns of y for ROWS rows, and the rows of x are the same for
// the whole workgroup. Dispatch: (ceil(n / 256) folded over x and y, with ceil(m / ROWS) as z).
override ROWS: u32 = 16;

@compute @workgroup_size(64)
fn matmul_uniform(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                  @builtin(local_invocation_index) local: u32) {
    let m0 = group.z * ROWS;
    let count = row_count();
    // The same for the whole workgroup.
    if m0 >= count {
        return;
    }
    let n = 4u * ((group.x + group.y * groups.x) * 64u + local);
    let columns = min(vec4(n) + vec4(0u, 1u, 2u, 3u), vec4(params.n - 1u));
    let stride = params.weight_stride;
    let fours = (params.k + 3u) >> 2u;
    var sums: array<vec4<f32>, 16>; // [row of x], component: column of y
    var lhs_rows: array<LhsRow, 16>;
    for (var i = 0u; i < ROWS; i++) {
        lhs_rows[i] = lhs_row_at(input_row(min(m0 + i, count - 1u)));
    }
    for (var block = 0u; block < fours; block += 8u) {
        let s0 = weight_scale(columns.x, block >> 3u, stride);
        let s1 = weight_scale(columns.y, block >> 3u, stride);
        let s2 = weight_scale(columns.z, block >> 3u, stride);
        let s3 = weight_scale(columns.w, block >> 3u, stride);
        for (var k4 = block; k4 < min(block + 8u, fours); k4++) {
            let w0 = scaled_weight4(columns.x, k4, stride, s0);
            let w1 = scaled_weight4(columns.y, k4, stride, s1);
            let w2 = scaled_weight4(columns.z, k4, stride, s2);
            let w3 = scaled_weight4(columns.w, k4, stride, s3);
            let wx = vec4(w0.x, w1.x, w2.x, w3.x);
            let wy = vec4(w0.y, w1.y, w2.y, w3.y);
            let wz = vec4(w0.z, w1.z, w2.z, w3.z);
            let ww = vec4(w0.w, w1.w, w2.w, w3.w);
            let step = lhs_column_at(k4);
            for (var i = 0u; i < ROWS; i++) {
                let x = lhs4(lhs_rows[i], step);
                sums[i] = fma(vec4(x.w), ww, fma(vec4(x.z), wz, fma(vec4(x.y), wy, fma(vec4(x.x), wx, sums[i]))));
            }
        }
    }
    if n >= params.n {
        return;
    }
    // The rows are rotated to index 0, one after the other (see matmul_subgroup.wgsl).
    let rows = min(ROWS, count - m0);
    for (var m = 0u; m < rows; m++) {
        store_sums4(m0 + m, n, sums[0]);
        for (var next = 1u; next < ROWS; next++) {
            sums[next - 1u] = sums[next];
        }
    }
}
