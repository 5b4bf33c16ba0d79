// y = x W^T for one row of x at a time, on adapters that run on a CPU and have subgroups of eight (see matmul_subgroup.wgsl).
// Weights are used as they are unpacked, and scales are multiplied to the sum of 32 products, not to each weight.
// (Not matmul_subgroup with ROWS = 1: loops of one keep Mesa's compiler from unrolling what is inside.)
// Dispatch: (ceil(n / 32) folded over x and y, m as z).
const LANES: u32 = 8u;

@compute @workgroup_size(LANES)
fn matvec_subgroup(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                   @builtin(subgroup_invocation_id) lane: u32) {
    let m = group.z;
    // The same for the whole workgroup.
    if m >= row_count() {
        return;
    }
    let row = input_row(m);
    let n = 4u * ((group.x + group.y * groups.x) * LANES + lane);
    let row4 = min(n, params.n - 1u) >> 2u;
    let fours = (params.k + 3u) >> 2u;
    var sum = vec4(0.0);
    var squares = 0.0;
    for (var k4 = 0u; k4 < fours; k4 += 8u) {
        load_block(row4, k4 >> 3u, params.weight_stride, params.n);
        let inside = k4 + lane < fours;
        let mine = min(k4 + lane, fours - 1u);
        var x = select(vec4(0.0), input4(row, mine, params.k), inside);
        if NORM == 1u {
            squares += dot(x, x);
            x *= normed_gain(mine);
        }
        let four = x.x + x.y + x.z + x.w;
        var total = 0.0;
        var dots = vec4(0.0);
        for (var i = 0u; i < LANES; i++) {
            total += subgroupShuffle(four, i);
        }
        for (var word = 0u; word < 32u / PER_WORD; word++) {
            let loaded = words[word];
            for (var i = 0u; i < PER_WORD; i++) {
                let k = PER_WORD * word + i;
                dots = fma(vec4(subgroupShuffle(x[k & 3u], k >> 2u)), block_column(word, loaded, i), dots);
            }
        }
        sum = fma(block_scale, dots, fma(block_offset, vec4(total), sum));
    }
    if NORM == 1u {
        // By all lanes, those past the last column too.
        sum *= normed_scale(subgroupAdd(squares));
    }
    if n < params.n {
        finish4(m, n, sum);
    }
}
