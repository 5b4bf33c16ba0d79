// y = x W^T for many rows of x, in tiles of TILE_M rows of x by 64 rows of W (tiles_64.wgsl). 16 columns of both are
// staged in workgroup memory at a time (`stage_*`). 128 invocations compute 8 x 4 or 8 x 8 outputs each: 128
// multiply-adds for 12 vectors read from workgroup memory, or 256 for 16.
// Dispatch: (ceil(n / 64), ceil(m / TILE_M), 1).
const STEP4: u32 = 4u;    // columns staged, in fours
const ROW: u32 = STEP4 + 1u; // so that neighbouring rows begin in different banks

var<workgroup> lhs_tile: array<Staged, TILE_M * ROW>;
var<workgroup> weight_tile: array<Staged, TILE_N * ROW>;

@compute @workgroup_size(128)
fn matmul(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let m0 = group.y * TILE_M;
    let n0 = group.x * TILE_N;
    let count = row_count();
    // The same for the whole workgroup.
    if m0 >= count {
        return;
    }
    // An invocation stages eight or sixteen columns of a row of x, and eight of a row of W.
    let load_m = (local * COLUMNS4) >> 1u;
    let lhs_k4 = 2u * (local & (2u - COLUMNS4));
    let load_n = local >> 1u;
    let weight_k4 = 2u * (local & 1u);
    let lhs_row = lhs_row_at(input_row(min(m0 + load_m, count - 1u)));
    let w_row = min(n0 + load_n, params.n - 1u);
    let x_at = lhs_slot(load_m) * ROW + lhs_k4;
    let w_at = weight_slot(load_n) * ROW + weight_k4;
    let fours = (params.k + 3u) >> 2u;
    let my_m = local / LANES_N; // rows 8 my_m ..
    let my_n = local % LANES_N; // columns COLUMNS my_n ..

    var sums: array<vec4<f32>, 8u * COLUMNS4>; // [four columns][row], component: column
    for (var k4 = 0u; k4 < fours; k4 += STEP4) {
        for (var i = 0u; i < 2u * COLUMNS4; i++) {
            let k = k4 + lhs_k4 + i;
            let x = lhs4(lhs_row, lhs_column_at(min(k, fours - 1u)));
            lhs_tile[x_at + i] = stage(select(vec4(0.0), x, k < fours));
        }
        let first = k4 + weight_k4;
        let scale = weight_scale(w_row, min(first, fours - 1u) >> 3u, params.weight_stride);
        for (var i = 0u; i < 2u; i++) {
            let k = min(first + i, fours - 1u);
            let weight = scaled_weight4(w_row, k, params.weight_stride, scale);
            weight_tile[w_at + i] = stage(select(vec4(0.0), weight, first + i < fours));
        }
        workgroupBarrier();
        for (var step = 0u; step < STEP4; step++) {
            var w: array<vec4<f32>, COLUMNS>;
            for (var j = 0u; j < COLUMNS; j++) {
                w[j] = unstage(weight_tile[(my_n + j * LANES_N) * ROW + step]);
            }
            for (var i = 0u; i < 8u; i++) {
                let x = unstage(lhs_tile[(my_m + LANES_M * i) * ROW + step]);
                for (var j = 0u; j < COLUMNS4; j++) {
                    let at = 4u * j;
                    sums[8u * j + i] += vec4(dot(x, w[at]), dot(x, w[at + 1u]), dot(x, w[at + 2u]), dot(x, w[at + 3u]));
                }
            }
        }
        workgroupBarrier();
    }
    for (var j = 0u; j < COLUMNS4; j++) {
        let n = n0 + 4u * (COLUMNS4 * my_n + j);
        for (var i = 0u; i < 8u; i++) {
            let m = m0 + 8u * my_m + i;
            if m < count && n < params.n {
                store_sums4(m, n, sums[8u * j + i]);
            }
        }
    }
}
