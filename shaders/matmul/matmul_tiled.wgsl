// y = x W^T for many rows of x, in tiles of 64 rows of x by 64 rows of W. 16 columns of both are staged in workgroup
// memory at a time (`stage_*`). 128 invocations compute 8 x 4 outputs each: 128 multiply-adds for 12 vectors read from
// workgroup memory. Dispatch: (ceil(n / 64), ceil(m / 64), 1).
const STEP4: u32 = 4u;    // columns staged, in fours
const ROW: u32 = STEP4 + 1u; // so that neighbouring rows begin in different banks

var<workgroup> lhs_tile: array<Staged, TILE * ROW>;
var<workgroup> weight_tile: array<Staged, TILE * ROW>;

@compute @workgroup_size(128)
fn matmul(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let m0 = group.y * TILE;
    let n0 = group.x * TILE;
    let count = row_count();
    // The same for the whole workgroup.
    if m0 >= count {
        return;
    }
    // An invocation stages eight columns of a row of both.
    let load_row = local >> 1u;
    let load_k4 = 2u * (local & 1u);
    let lhs_row = lhs_row_at(input_row(min(m0 + load_row, count - 1u)));
    let w_row = min(n0 + load_row, params.n - 1u);
    let x_at = lhs_slot(load_row) * ROW + load_k4;
    let w_at = weight_slot(load_row) * ROW + load_k4;
    let fours = (params.k + 3u) >> 2u;
    let my_m = local >> 4u; // rows 8 my_m ..
    let my_n = local & 15u; // columns 4 my_n ..

    var sums: array<vec4<f32>, 8>; // [row of x], component: row of W
    for (var k4 = 0u; k4 < fours; k4 += STEP4) {
        let first = k4 + load_k4;
        let scale = weight_scale(w_row, min(first, fours - 1u) >> 3u, params.weight_stride);
        for (var i = 0u; i < 2u; i++) {
            let k = min(first + i, fours - 1u);
            let inside = first + i < fours;
            lhs_tile[x_at + i] = stage(select(vec4(0.0), lhs4(lhs_row, lhs_column_at(k)), inside));
            let weight = scaled_weight4(w_row, k, params.weight_stride, scale);
            weight_tile[w_at + i] = stage(select(vec4(0.0), weight, inside));
        }
        workgroupBarrier();
        for (var step = 0u; step < STEP4; step++) {
            let w0 = unstage(weight_tile[my_n * ROW + step]);
            let w1 = unstage(weight_tile[(my_n + 16u) * ROW + step]);
            let w2 = unstage(weight_tile[(my_n + 32u) * ROW + step]);
            let w3 = unstage(weight_tile[(my_n + 48u) * ROW + step]);
            for (var i = 0u; i < 8u; i++) {
                let x = unstage(lhs_tile[(my_m + 8u * i) * ROW + step]);
                sums[i] += vec4(dot(x, w0), dot(x, w1), dot(x, w2), dot(x, w3));
            }
        }
        workgroupBarrier();
    }
    let n = n0 + 4u * my_n;
    for (var i = 0u; i < 8u; i++) {
        let m = m0 + 8u * my_m + i;
        if m < count && n < params.n {
            store_sums4(m, n, sums[i]);
        }
    }
}
