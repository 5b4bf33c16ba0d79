// y = x W^T for adapters that run on a CPU and have subgroups of eight invocations. There every load is a loop over the
// lanes, whatever its size, and a barrier switches between all invocations; arithmetic and shuffles are single
// instructions. So a subgroup loads 32 columns of x once, 16 bytes a lane, and hands them around; a lane computes four
// columns of y for ROWS rows, two or more (one row: matvec_subgroup.wgsl). A workgroup is one subgroup.
// Dispatch: (ceil(n / (4 LANES)) folded over x and y, ceil(m / ROWS) as z).

const LANES: u32 = 8u;
const BLOCKS: u32 = 1u;

@compute @workgroup_size(LANES)
fn matmul_subgroup(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                   @builtin(subgroup_invocation_id) lane: u32) {
    let m0 = group.z * ROWS;
    let count = row_count();
    // The same for the whole workgroup.
    if m0 >= count {
        return;
    }
    let n = 4u * ((group.x + group.y * groups.x) * LANES + lane);
    let row4 = min(n, params.n - 1u) >> 2u;
    let fours = (params.k + 3u) >> 2u;
    var sums: array<vec4<f32>, ROWS>; // [row of x], component: column of y
    var squares: array<f32, ROWS>;
    var places: array<Place, ROWS>;
    for (var m = 0u; m < ROWS; m++) {
        places[m] = input_place(input_row(min(m0 + m, count - 1u)));
    }
    for (var k4 = 0u; k4 < fours; k4 += 8u) {
        load_block(0u, row4, k4 >> 3u, params.weight_stride, params.n);
        var block: array<vec4<f32>, 32>;
        for (var word = 0u; word < 32u / PER_WORD; word++) {
            let loaded = words[0][word];
            for (var i = 0u; i < PER_WORD; i++) {
                block[PER_WORD * word + i] = fma(block_scale(0u), block_column(0u, word, loaded, i), block_offset(0u));
            }
        }
        let inside = k4 + lane < fours;
        let mine = min(k4 + lane, fours - 1u);
        let step = input_step(mine);
        var gain = vec4(1.0);
        if NORM == 1u {
            gain = normed_gain(mine);
        }
        for (var m = 0u; m < ROWS; m++) {
            var x = select(vec4(0.0), input4(places[m], step), inside);
            if NORM == 1u {
                squares[m] += dot(x, x);
                x *= gain;
            }
            var sum = sums[m];
            for (var i = 0u; i < LANES; i++) {
                for (var c = 0u; c < 4u; c++) {
                    sum = fma(vec4(subgroupShuffle(x[c], i)), block[4u * i + c], sum);
                }
            }
            sums[m] = sum;
        }
    }
    for (var m = 0u; m < ROWS; m++) {
        var scale = 1.0;
        if NORM == 1u {
            // By all lanes, those past the last column too.
            scale = normed_scale(subgroupAdd(squares[m]));
        }
        if m0 + m < count && n < params.n {
            finish4(m0 + m, n, scale * sums[m]);
        }
    }
}
