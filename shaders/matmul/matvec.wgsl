// y = x W^T for few rows of x: a workgroup computes four rows of W against one row of x; its invocations split k.
// Dispatch: (ceil(n / 4) folded over x and y, m as z).
@compute @workgroup_size(WORKGROUP)
fn matvec(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
          @builtin(local_invocation_index) lane: u32) {
    let n = 4u * (group.x + group.y * groups.x);
    let m = group.z;
    // The same for the whole workgroup, so the barriers below stay uniform.
    if n >= params.n || m >= row_count() {
        return;
    }
    let lhs_row = lhs_row_at(input_row(m));
    let last = params.n - 1u;
    let rows = min(vec4(n) + vec4(0u, 1u, 2u, 3u), vec4(last));
    let fours = (params.k + 3u) >> 2u;
    let stride = params.weight_stride;
    var sums = vec4(0.0);
    var squares = 0.0;
    for (var k4 = lane; k4 < fours; k4 += WORKGROUP) {
        var x = lhs4(lhs_row, lhs_column_at(k4));
        if NORM == 1u {
            squares += dot(x, x);
            x *= normed_gain(k4);
        }
        sums += vec4(dot(weight4(rows.x, k4, stride), x), dot(weight4(rows.y, k4, stride), x),
                     dot(weight4(rows.z, k4, stride), x), dot(weight4(rows.w, k4, stride), x));
    }
    sums = workgroup_sum4(sums, lane);
    if NORM == 1u {
        sums *= normed_scale(workgroup_sum4(vec4(squares), lane).x);
    }
    if lane == 0u {
        store_sums4(m, n, sums);
    }
}
