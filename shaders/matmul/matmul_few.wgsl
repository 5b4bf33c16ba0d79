// y = x W^T for 2 to 16 rows of x: weights are read and unpacked once for INPUT_ROWS rows, whose sums stay in registers.
// An invocation computes OWNED rows of W, LANES apart, against all rows of x; LANES neighbouring invocations read the
// same columns of neighbouring rows, which are contiguous if they are quantised (pack.rs); groups of 32 columns are
// interleaved among the SLICES of a workgroup. x is staged in workgroup memory, normalised, 32 GROUPS columns at a time.
// A vec4 of x is read for 4 OWNED multiply-adds, a weight is unpacked for INPUT_ROWS of them.
// Dispatch: (ceil(n / (LANES OWNED)) folded over x and y, ceil(m / INPUT_ROWS) as z).
const SLICES: u32 = WORKGROUP / LANES;
// Groups of columns that are staged at a time, a multiple of SLICES: 8 KiB for all rows of x, or 16 KiB.
const GROUPS: u32 = max(max(64u / INPUT_ROWS, 8u), SLICES);
const CHUNK4: u32 = 8u * GROUPS;
// Fours that an invocation stages; those of a row are staged by the same invocations every time.
const STEPS: u32 = INPUT_ROWS * CHUNK4 / WORKGROUP;
// Rows of x whose sums are added up at a time, in the memory of x.
const PASS: u32 = min(STEPS, INPUT_ROWS);
const COLUMNS4: u32 = LANES * OWNED / 4u;

// Four columns of a group are stored before the same four of the next group. The exclusive or spreads the eight fours
// of a group over all banks.
var<workgroup> staged: array<vec4<f32>, INPUT_ROWS * CHUNK4>;

@compute @workgroup_size(WORKGROUP)
fn matmul_few(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
              @builtin(local_invocation_index) local: u32) {
    let n0 = LANES * OWNED * (group.x + group.y * groups.x);
    let m0 = INPUT_ROWS * group.z;
    let count = row_count();
    // The same for the whole workgroup, so the barriers below stay uniform.
    if n0 >= params.n || m0 >= count {
        return;
    }
    let lane = local % LANES;
    let slice = local / LANES;
    let fours = (params.k + 3u) >> 2u;
    let stride = params.weight_stride;
    let last_group = ((stride + 7u) >> 3u) - 1u;
    var lhs_rows: array<LhsRow, STEPS>;
    for (var s = 0u; s < STEPS; s++) {
        lhs_rows[s] = lhs_row_at(input_row(min(m0 + (s * WORKGROUP + local) / CHUNK4, count - 1u)));
    }
    var next: array<RowGroup, OWNED>;
    for (var o = 0u; o < OWNED; o++) {
        next[o] = load_row_group(min(n0 + LANES * o + lane, params.n - 1u), min(slice, last_group), stride);
    }
    var sums: array<f32, OWNED * INPUT_ROWS>;
    var squares: array<f32, STEPS>;
    for (var first = 0u; first <= last_group; first += GROUPS) {
        for (var s = 0u; s < STEPS; s++) {
            let item = s * WORKGROUP + local;
            let i = item % CHUNK4;
            let k4 = 8u * first + i;
            var four = vec4(0.0);
            if k4 < fours {
                four = lhs4(lhs_rows[s], lhs_column_at(k4));
                if NORM == 1u {
                    squares[s] += dot(four, four);
                    four *= normed_gain(k4);
                }
            }
            staged[item - i + (i & 7u) * GROUPS + ((i >> 3u) ^ (i & 7u))] = four;
        }
        workgroupBarrier();
        let end = min(GROUPS, last_group + 1u - first);
        for (var g = slice; g < end; g += SLICES) {
            // An invocation loads its next group of weights before it multiplies the current one.
            var loaded = next;
            // Without a value Chromium zeroes it only once, before the loop.
            var scales = array<RowScales, OWNED>();
            for (var o = 0u; o < OWNED; o++) {
                let row = min(n0 + LANES * o + lane, params.n - 1u);
                next[o] = load_row_group(row, min(first + g + SLICES, last_group), stride);
                scales[o] = row_scales(loaded[o]);
            }
            for (var j = 0u; j < 8u; j++) {
                var w = array<vec4<f32>, OWNED>();
                for (var o = 0u; o < OWNED; o++) {
                    w[o] = scaled_columns4(loaded[o], scales[o], j);
                }
                for (var r = 0u; r < INPUT_ROWS; r++) {
                    let x = staged[r * CHUNK4 + j * GROUPS + (g ^ j)];
                    for (var o = 0u; o < OWNED; o++) {
                        let i = o * INPUT_ROWS + r;
                        sums[i] = fma(x.w, w[o].w, fma(x.z, w[o].z, fma(x.y, w[o].y, fma(x.x, w[o].x, sums[i]))));
                    }
                }
            }
        }
        workgroupBarrier();
    }
    if NORM == 1u {
        for (var s = 0u; s < STEPS; s++) {
            staged[s * WORKGROUP + local] = vec4(squares[s]);
        }
        workgroupBarrier();
        // Of each row eight partial sums, then one.
        var partial = 0.0;
        if local < 8u * INPUT_ROWS {
            for (var i = local & 7u; i < CHUNK4; i += 8u) {
                partial += staged[(local >> 3u) * CHUNK4 + i].x;
            }
        }
        workgroupBarrier();
        staged[local] = vec4(partial);
        workgroupBarrier();
        var scale = 0.0;
        if local < INPUT_ROWS {
            for (var i = 0u; i < 8u; i++) {
                scale += staged[8u * local + i].x;
            }
        }
        workgroupBarrier();
        staged[local] = vec4(normed_scale(scale));
        workgroupBarrier();
        for (var r = 0u; r < INPUT_ROWS; r++) {
            let factor = staged[r].x;
            for (var o = 0u; o < OWNED; o++) {
                sums[o * INPUT_ROWS + r] *= factor;
            }
        }
        workgroupBarrier();
    }
    for (var done = 0u; done < INPUT_ROWS; done += PASS) {
        for (var r = 0u; r < PASS; r++) {
            var own = vec4(0.0);
            for (var o = 0u; o < OWNED; o++) {
                own[o] = sums[o * INPUT_ROWS + r];
            }
            staged[r * WORKGROUP + local] = own;
        }
        workgroupBarrier();
        for (var item = local; item < PASS * COLUMNS4; item += WORKGROUP) {
            let m = m0 + done + item / COLUMNS4;
            let column = 4u * (item % COLUMNS4);
            let o = column / LANES;
            var at = item / COLUMNS4 * WORKGROUP + column % LANES;
            var total = vec4(0.0);
            for (var s = 0u; s < SLICES; s++) {
                total += vec4(staged[at][o], staged[at + 1u][o], staged[at + 2u][o], staged[at + 3u][o]);
                at += LANES;
            }
            if m < count && n0 + column < params.n {
                store_sums4(m, n0 + column, total);
            }
        }
        workgroupBarrier();
        // The next rows move to the front, so that every index is a constant in a loop that is not unrolled.
        for (var r = PASS; r < INPUT_ROWS; r++) {
            for (var o = 0u; o < OWNED; o++) {
                sums[o * INPUT_ROWS + r - PASS] = sums[o * INPUT_ROWS + r];
            }
        }
    }
}
