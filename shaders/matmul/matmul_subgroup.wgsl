// y = x W^T for software adapters with subgroups of eight. There every load is a loop over the lanes, whatever its
// size, and a barrier switches between all invocations; arithmetic and shuffles are single instructions. So a subgroup
// loads 32 columns of x once, 16 bytes a lane, and shares them by shuffles. A lane computes four columns of y, or eight
// in two blocks (then x is loaded half as often), for ROWS >= 2 rows (one row: matvec_subgroup.wgsl). A workgroup is
// one subgroup. (Two blocks are written out: Mesa's compiler unrolls nothing inside a loop of one iteration.)
// Dispatch: (ceil(n / (4 LANES BLOCKS)) folded over x and y, ceil(m / ROWS) as z).

const LANES: u32 = 8u;

fn unpacked(b: u32) -> array<vec4<f32>, 32> {
    var block: array<vec4<f32>, 32>;
    for (var word = 0u; word < 32u / PER_WORD; word++) {
        let loaded = words[b][word];
        for (var i = 0u; i < PER_WORD; i++) {
            block[PER_WORD * word + i] = fma(block_scale(b), block_column(b, word, loaded, i), block_offset(b));
        }
    }
    return block;
}

@compute @workgroup_size(LANES)
fn matmul_subgroup(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                   @builtin(subgroup_invocation_id) lane: u32) {
    let m0 = group.z * ROWS;
    let count = row_count();
    // The same for the whole workgroup.
    if m0 >= count {
        return;
    }
    // The lanes' blocks of four rows are contiguous.
    let n = 4u * (BLOCKS * LANES * (group.x + group.y * groups.x) + lane);
    let n2 = n + 4u * LANES;
    let fours = (params.k + 3u) >> 2u;
    var sums: array<vec4<f32>, ROWS>; // [row of x], component: column of y
    var sums2: array<vec4<f32>, ROWS>; // the same of the second block
    var squares: array<f32, ROWS>;
    var lhs_rows: array<LhsRow, ROWS>;
    for (var m = 0u; m < ROWS; m++) {
        lhs_rows[m] = lhs_row_at(input_row(min(m0 + m, count - 1u)));
    }
    for (var k4 = 0u; k4 < fours; k4 += 8u) {
        load_block(0u, min(n, params.n - 1u) >> 2u, k4 >> 3u, params.weight_stride, params.n);
        var block = unpacked(0u);
        var block2: array<vec4<f32>, 32>;
        if BLOCKS == 2u {
            load_block(BLOCKS - 1u, min(n2, params.n - 1u) >> 2u, k4 >> 3u, params.weight_stride, params.n);
            block2 = unpacked(BLOCKS - 1u);
        }
        let inside = k4 + lane < fours;
        let mine = min(k4 + lane, fours - 1u);
        let step = lhs_column_at(mine);
        var gain = vec4(1.0);
        if NORM == 1u {
            gain = normed_gain(mine);
        }
        for (var m = 0u; m < ROWS; m++) {
            var x = select(vec4(0.0), lhs4(lhs_rows[m], step), inside);
            if NORM == 1u {
                squares[m] += dot(x, x);
                x *= gain;
            }
            var sum = sums[m];
            var sum2 = sums2[m];
            for (var i = 0u; i < LANES; i++) {
                for (var c = 0u; c < 4u; c++) {
                    let shared_x = vec4(subgroupShuffle(x[c], i));
                    sum = fma(shared_x, block[4u * i + c], sum);
                    if BLOCKS == 2u {
                        sum2 = fma(shared_x, block2[4u * i + c], sum2);
                    }
                }
            }
            sums[m] = sum;
            sums2[m] = sum2;
        }
    }
    // Not unrolled: ROWS copies of the epilogue dominated the driver's compile time. Instead the rows are rotated to
    // index 0, one after the other, so that every index is a constant.
    let rows = min(ROWS, count - m0);
    for (var m = 0u; m < rows; m++) {
        var scale = 1.0;
        if NORM == 1u {
            // By all lanes, those past the last column too.
            scale = normed_scale(subgroupAdd(squares[0]));
        }
        if n < params.n {
            store_sums4(m0 + m, n, scale * sums[0]);
        }
        if BLOCKS == 2u && n2 < params.n {
            store_sums4(m0 + m, n2, scale * sums2[0]);
        }
        for (var next = 1u; next < ROWS; next++) {
            sums[next - 1u] = sums[next];
            sums2[next - 1u] = sums2[next];
            squares[next - 1u] = squares[next];
        }
    }
}
