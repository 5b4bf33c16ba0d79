// y = x W^T for many rows of x, in tiles of 64 rows of x by 64 rows of W, 16 columns of both staged at a time.
// 256 invocations compute 4 x 4 outputs each. Dispatch: (ceil(n / 64), ceil(m / 64), 1).
const TILE: u32 = 64u;
const STEP4: u32 = 4u; // columns staged, in fours

// Rows of 5 so that the 16 invocations reading a column of the tile hit different banks.
var<workgroup> input_tile: array<vec4<f32>, TILE * (STEP4 + 1u)>;
var<workgroup> weight_tile: array<vec4<f32>, TILE * (STEP4 + 1u)>;

@compute @workgroup_size(256)
fn matmul(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let m0 = group.y * TILE;
    let n0 = group.x * TILE;
    let count = row_count();
    // The same for the whole workgroup.
    if m0 >= count {
        return;
    }
    let load_row = local >> 2u;
    let load_k4 = local & 3u;
    let place = input_place(input_row(min(m0 + load_row, count - 1u)));
    let w_row = min(n0 + load_row, params.n - 1u);
    let fours = (params.k + 3u) >> 2u;
    let my_m = 4u * (local >> 4u);
    let my_n = 4u * (local & 15u);

    var sums: array<vec4<f32>, 4>; // [row of x], component: row of W
    for (var k4 = 0u; k4 < fours; k4 += STEP4) {
        let at = load_row * (STEP4 + 1u) + load_k4;
        let k = min(k4 + load_k4, fours - 1u);
        let inside = k4 + load_k4 < fours;
        input_tile[at] = select(vec4(0.0), input4(place, input_step(k)), inside);
        weight_tile[at] = select(vec4(0.0), weight4(w_row, k, params.weight_stride), inside);
        workgroupBarrier();
        for (var step = 0u; step < STEP4; step++) {
            let w0 = weight_tile[(my_n + 0u) * (STEP4 + 1u) + step];
            let w1 = weight_tile[(my_n + 1u) * (STEP4 + 1u) + step];
            let w2 = weight_tile[(my_n + 2u) * (STEP4 + 1u) + step];
            let w3 = weight_tile[(my_n + 3u) * (STEP4 + 1u) + step];
            for (var i = 0u; i < 4u; i++) {
                let x = input_tile[(my_m + i) * (STEP4 + 1u) + step];
                sums[i] += vec4(dot(x, w0), dot(x, w1), dot(x, w2), dot(x, w3));
            }
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < 4u; i++) {
        if m0 + my_m + i < count && n0 + my_n < params.n {
            finish4(m0 + my_m + i, n0 + my_n, sums[i]);
        }
    }
}
