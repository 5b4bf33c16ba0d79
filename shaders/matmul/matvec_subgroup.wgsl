// y = x W^T for one row of x at a time, for software adapters with subgroups of eight (see matmul_subgroup.wgsl). A
// lane computes eight columns of y, in two blocks. Weights are multiplied as integers; scales are applied to the sum of
// 32 products. (This is not matmul_subgroup with ROWS = 1: Mesa's compiler unrolls nothing inside a loop of one
// iteration.) Dispatch: (ceil(n / 64) folded over x and y, m as z).
const LANES: u32 = 8u;
const BLOCKS: u32 = 2u;

@compute @workgroup_size(LANES)
fn matvec_subgroup(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                   @builtin(subgroup_invocation_id) lane: u32) {
    let m = group.z;
    // The same for the whole workgroup.
    if m >= row_count() {
        return;
    }
    let lhs_row = lhs_row_at(input_row(m));
    // The lanes' blocks of four rows are contiguous.
    let n = 4u * (BLOCKS * LANES * (group.x + group.y * groups.x) + lane);
    let fours = (params.k + 3u) >> 2u;
    var sums: array<vec4<f32>, BLOCKS>;
    var squares = 0.0;
    for (var k4 = 0u; k4 < fours; k4 += 8u) {
        for (var b = 0u; b < BLOCKS; b++) {
            load_block(b, min(n + 4u * LANES * b, params.n - 1u) >> 2u, k4 >> 3u, params.weight_stride, params.n);
        }
        let inside = k4 + lane < fours;
        let mine = min(k4 + lane, fours - 1u);
        var x = select(vec4(0.0), lhs4(lhs_row, lhs_column_at(mine)), inside);
        if NORM == 1u {
            squares += dot(x, x);
            x *= normed_gain(mine);
        }
        let four = x.x + x.y + x.z + x.w;
        var total = 0.0;
        for (var i = 0u; i < LANES; i++) {
            total += subgroupShuffle(four, i);
        }
        for (var b = 0u; b < BLOCKS; b++) {
            var dots = vec4(0.0);
            for (var word = 0u; word < 32u / PER_WORD; word++) {
                let loaded = words[b][word];
                for (var i = 0u; i < PER_WORD; i++) {
                    let k = PER_WORD * word + i;
                    dots = fma(vec4(subgroupShuffle(x[k & 3u], k >> 2u)), block_column(b, word, loaded, i), dots);
                }
            }
            sums[b] = fma(block_scale(b), dots, fma(block_offset(b), vec4(total), sums[b]));
        }
    }
    var scale = 1.0;
    if NORM == 1u {
        // By all lanes, those past the last column too.
        scale = normed_scale(subgroupAdd(squares));
    }
    for (var b = 0u; b < BLOCKS; b++) {
        if n + 4u * LANES * b < params.n {
            store_sums4(m, n + 4u * LANES * b, scale * sums[b]);
        }
    }
}
