// y = x W^T for software adapters with subgroups of four, for four rows or more. As matmul_uniform.wgsl, but the
// subgroup loads the rows of x, which all invocations need, once and broadcasts them: a load is a loop over lanes, a
// broadcast one instruction. Dispatch: (ceil(n / 256) folded over x and y, with ceil(m / ROWS) as z).
override ROWS: u32 = 8; // 4 or 8

// sum + x W^T for four columns of x, given the columns of W.
fn accumulate(sum: vec4<f32>, x: vec4<f32>, wx: vec4<f32>, wy: vec4<f32>, wz: vec4<f32>, ww: vec4<f32>) -> vec4<f32> {
    return sum + x.x * wx + x.y * wy + x.z * wz + x.w * ww;
}

@compute @workgroup_size(64)
fn matmul_subgroup4(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                    @builtin(local_invocation_index) local: u32, @builtin(subgroup_invocation_id) lane: u32) {
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
    let lhs_row0 = lhs_row_at(input_row(min(m0 + lane, count - 1u)));
    let lhs_row4 = lhs_row_at(input_row(min(m0 + 4u + lane, count - 1u)));
    var s0 = vec4(0.0);
    var s1 = vec4(0.0);
    var s2 = vec4(0.0);
    var s3 = vec4(0.0);
    var s4 = vec4(0.0);
    var s5 = vec4(0.0);
    var s6 = vec4(0.0);
    var s7 = vec4(0.0);
    for (var block = 0u; block < fours; block += 8u) {
        let scale0 = weight_scale(columns.x, block >> 3u, stride);
        let scale1 = weight_scale(columns.y, block >> 3u, stride);
        let scale2 = weight_scale(columns.z, block >> 3u, stride);
        let scale3 = weight_scale(columns.w, block >> 3u, stride);
        for (var k4 = block; k4 < min(block + 8u, fours); k4++) {
            let w0 = scaled_weight4(columns.x, k4, stride, scale0);
            let w1 = scaled_weight4(columns.y, k4, stride, scale1);
            let w2 = scaled_weight4(columns.z, k4, stride, scale2);
            let w3 = scaled_weight4(columns.w, k4, stride, scale3);
            let wx = vec4(w0.x, w1.x, w2.x, w3.x);
            let wy = vec4(w0.y, w1.y, w2.y, w3.y);
            let wz = vec4(w0.z, w1.z, w2.z, w3.z);
            let ww = vec4(w0.w, w1.w, w2.w, w3.w);
            let step = lhs_column_at(k4);
            let x = lhs4(lhs_row0, step);
            s0 = accumulate(s0, subgroupBroadcast(x, 0u), wx, wy, wz, ww);
            s1 = accumulate(s1, subgroupBroadcast(x, 1u), wx, wy, wz, ww);
            s2 = accumulate(s2, subgroupBroadcast(x, 2u), wx, wy, wz, ww);
            s3 = accumulate(s3, subgroupBroadcast(x, 3u), wx, wy, wz, ww);
            if ROWS > 4u {
                let y = lhs4(lhs_row4, step);
                s4 = accumulate(s4, subgroupBroadcast(y, 0u), wx, wy, wz, ww);
                s5 = accumulate(s5, subgroupBroadcast(y, 1u), wx, wy, wz, ww);
                s6 = accumulate(s6, subgroupBroadcast(y, 2u), wx, wy, wz, ww);
                s7 = accumulate(s7, subgroupBroadcast(y, 3u), wx, wy, wz, ww);
            }
        }
    }
    if n >= params.n {
        return;
    }
    // The rows are rotated to index 0, one after the other (see matmul_subgroup.wgsl).
    let rows = min(ROWS, count - m0);
    for (var m = 0u; m < rows; m++) {
        store_sums4(m0 + m, n, s0);
        s0 = s1;
        s1 = s2;
        s2 = s3;
        s3 = s4;
        s4 = s5;
        s5 = s6;
        s6 = s7;
    }
}
