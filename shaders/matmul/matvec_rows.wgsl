// y = x W^T for few rows of x and quantised weights. An invocation computes OWNED rows of W, LANES apart, against
// INPUT_ROWS rows of x; LANES neighbouring invocations read the same columns of neighbouring rows, which are contiguous
// (pack.rs); groups of 32 columns are interleaved among the WORKGROUP / LANES slices of a workgroup. x is staged in
// workgroup memory, normalised, 32 GROUPS columns at a time, with its sums over half groups (for the minima). An
// invocation loads its next group of weights before it multiplies the current one. Reads b(W) once for INPUT_ROWS rows of x.
// Dispatch: (ceil(n / (LANES OWNED)) folded over x and y, ceil(m / INPUT_ROWS) as z).
// Groups of columns that are staged at a time, a multiple of SLICES: 8 KiB for all rows of x.
const GROUPS: u32 = 64u / INPUT_ROWS;
override SLICES: u32 = WORKGROUP / LANES;
const CHUNK4: u32 = 8u * GROUPS;

// Four columns of a group are stored before the same four of the next group. The exclusive or spreads the eight fours
// of a group over all banks.
var<workgroup> staged: array<vec4<f32>, INPUT_ROWS * CHUNK4>;
var<workgroup> half_sums: array<vec2<f32>, INPUT_ROWS * GROUPS>;

@compute @workgroup_size(WORKGROUP)
fn matvec_rows(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
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
    let last_group = (stride >> 3u) - 1u;
    var lhs_rows: array<LhsRow, INPUT_ROWS>;
    for (var r = 0u; r < INPUT_ROWS; r++) {
        lhs_rows[r] = lhs_row_at(input_row(min(m0 + r, count - 1u)));
    }
    var next: array<RowGroup, OWNED>;
    for (var o = 0u; o < OWNED; o++) {
        next[o] = load_row_group(min(n0 + LANES * o + lane, params.n - 1u), min(slice, last_group), stride);
    }
    var sums: array<f32, OWNED * INPUT_ROWS>;
    var squares = vec4(0.0);
    for (var first = 0u; first <= last_group; first += GROUPS) {
        for (var i = local; i < CHUNK4; i += WORKGROUP) {
            let k4 = 8u * first + i;
            let at = (i & 7u) * GROUPS + ((i >> 3u) ^ (i & 7u));
            for (var r = 0u; r < INPUT_ROWS; r++) {
                var four = vec4(0.0);
                if k4 < fours {
                    four = lhs4(lhs_rows[r], lhs_column_at(k4));
                    if NORM == 1u {
                        squares[r] += dot(four, four);
                        four *= normed_gain(k4);
                    }
                }
                staged[r * CHUNK4 + at] = four;
            }
        }
        workgroupBarrier();
        for (var i = local; i < INPUT_ROWS * GROUPS; i += WORKGROUP) {
            let start = i / GROUPS * CHUNK4;
            let g = i % GROUPS;
            var first_half = vec4(0.0);
            var second_half = vec4(0.0);
            for (var j = 0u; j < 4u; j++) {
                first_half += staged[start + j * GROUPS + (g ^ j)];
                second_half += staged[start + (j + 4u) * GROUPS + (g ^ (j + 4u))];
            }
            half_sums[i] = vec2(first_half.x + first_half.y + first_half.z + first_half.w,
                                second_half.x + second_half.y + second_half.z + second_half.w);
        }
        workgroupBarrier();
        let end = min(GROUPS, last_group + 1u - first);
        for (var g = slice; g < end; g += SLICES) {
            var loaded = next;
            for (var o = 0u; o < OWNED; o++) {
                let row = min(n0 + LANES * o + lane, params.n - 1u);
                next[o] = load_row_group(row, min(first + g + SLICES, last_group), stride);
            }
            // Without a value Chromium zeroes it only once, before the loop.
            var dots = array<vec2<f32>, OWNED * INPUT_ROWS>();
            for (var j = 0u; j < 8u; j++) {
                for (var r = 0u; r < INPUT_ROWS; r++) {
                    let x = staged[r * CHUNK4 + j * GROUPS + (g ^ j)];
                    for (var o = 0u; o < OWNED; o++) {
                        let w = group_columns4(loaded[o], j);
                        let i = o * INPUT_ROWS + r;
                        dots[i][j >> 2u] = fma(x.w, w.w, fma(x.z, w.z, fma(x.y, w.y, fma(x.x, w.x, dots[i][j >> 2u]))));
                    }
                }
            }
            for (var o = 0u; o < OWNED; o++) {
                let scale = group_scales(loaded[o]);
                let offset = group_offsets(loaded[o]);
                for (var r = 0u; r < INPUT_ROWS; r++) {
                    let i = o * INPUT_ROWS + r;
                    sums[i] += dot(scale, dots[i]) + dot(offset, half_sums[r * GROUPS + g]);
                }
            }
        }
        workgroupBarrier();
    }
    var scale = vec4(1.0);
    if NORM == 1u {
        let all = workgroup_sum4(squares, local);
        for (var r = 0u; r < INPUT_ROWS; r++) {
            scale[r] = normed_scale(all[r]);
        }
    }
    for (var r = 0u; r < INPUT_ROWS; r++) {
        var own = vec4(0.0);
        for (var o = 0u; o < OWNED; o++) {
            own[o] = sums[o * INPUT_ROWS + r];
        }
        reduce_scratch[local] = own;
        workgroupBarrier();
        if local < LANES {
            for (var s = 1u; s < SLICES; s++) {
                own += reduce_scratch[s * LANES + local];
            }
            reduce_scratch[local] = own;
        }
        workgroupBarrier();
        let row = 4u * local;
        if row < LANES * OWNED && n0 + row < params.n && m0 + r < count {
            let o = row / LANES;
            let l = row % LANES;
            store_sums4(m0 + r, n0 + row, scale[r] * vec4(reduce_scratch[l][o], reduce_scratch[l + 1u][o],
                                                          reduce_scratch[l + 2u][o], reduce_scratch[l + 3u][o]));
        }
        workgroupBarrier();
    }
}
