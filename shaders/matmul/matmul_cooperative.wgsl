// y = x W^T for many rows of x on a GPU's matrix units: tiles of TILE rows of x by TILE rows of W. STEP columns of both
// are staged in workgroup memory in f16 at a time, while the next ones are on their way to registers. A subgroup
// computes a part of SUB_M x SUB_N in matrices of SIZE x SIZE (cooperative_*); with fewer subgroups than parts, each
// computes several in turn. Dispatch: (ceil(n / TILE), ceil(m / TILE), 1).
const PARTS_N: u32 = TILE / SUB_N;
const PARTS: u32 = TILE / SUB_M * PARTS_N;
const MATRICES_M: u32 = SUB_M / SIZE;
const MATRICES_N: u32 = SUB_N / SIZE;
const STEP4: u32 = STEP / 4u;
// Neighbouring rows begin in different banks, and all at a multiple of 16 bytes, as loads of matrices require.
const ROW4: u32 = STEP4 + 2u;
const ROW: u32 = ROW4 * PER_FOUR;
// Runs of eight columns of a row that are staged, and the number of them that an invocation stages of each factor.
const RUNS: u32 = STEP / 8u;
const RUNS_EACH: u32 = TILE * RUNS / WORKGROUP;

var<workgroup> lhs_tile: array<Element, TILE * ROW>;
var<workgroup> weight_tile: array<Element, TILE * ROW>;
// A finished matrix of each part.
var<workgroup> output_matrices: array<f32, PARTS * SIZE * SIZE>;

@compute @workgroup_size(WORKGROUP)
fn matmul_cooperative(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32,
                      @builtin(subgroup_id) subgroup: u32, @builtin(num_subgroups) subgroups: u32) {
    let m0 = group.y * TILE;
    let n0 = group.x * TILE;
    let count = row_count();
    // The same for the whole workgroup.
    if m0 >= count {
        return;
    }
    let fours = (params.k + 3u) >> 2u;
    let last_run = (fours - 1u) >> 1u;
    // The last step comes first: it alone may reach past the end of the rows, so that loads in the loop need no
    // clamping.
    let last4 = (fours - 1u) / STEP4 * STEP4;
    var lhs_rows: array<LhsRow, RUNS_EACH>;
    for (var i = 0u; i < RUNS_EACH; i++) {
        lhs_rows[i] = lhs_row_at(input_row(min(m0 + (local + i * WORKGROUP) / RUNS, count - 1u)));
    }
    for (var first = 0u; first < PARTS; first += max(subgroups, 1u)) {
        // The same for a whole subgroup. Subgroups past the parts compute the last one again, and store nothing.
        let part = first + subgroup;
        let within = min(part, PARTS - 1u);
        let x_row = SUB_M * (within / PARTS_N);
        let w_row = SUB_N * (within % PARTS_N);
        var sums: array<Sums, MATRICES_M * MATRICES_N>;
        for (var i = 0u; i < MATRICES_M * MATRICES_N; i++) {
            sums[i] = Sums();
        }
        var x: array<vec4<f32>, 2u * RUNS_EACH>;
        var w: array<Run, RUNS_EACH>;
        for (var i = 0u; i < RUNS_EACH; i++) {
            let item = local + i * WORKGROUP;
            let first4 = last4 + 2u * (item % RUNS);
            x[2u * i] = lhs_or_zero(lhs_rows[i], first4, fours);
            x[2u * i + 1u] = lhs_or_zero(lhs_rows[i], first4 + 1u, fours);
            w[i] = load_run(min(n0 + item / RUNS, params.n - 1u), min(first4 >> 1u, last_run), params.weight_stride);
        }
        for (var k4 = 0u; k4 <= last4; k4 += STEP4) {
            for (var i = 0u; i < RUNS_EACH; i++) {
                let item = local + i * WORKGROUP;
                let at = item / RUNS * ROW4 + 2u * (item % RUNS);
                put_lhs(at, stage(x[2u * i]));
                put_lhs(at + 1u, stage(x[2u * i + 1u]));
                put_weight(at, stage_run4(w[i], 0u));
                put_weight(at + 1u, stage_run4(w[i], 1u));
            }
            workgroupBarrier();
            // The same for the whole workgroup.
            if k4 < last4 {
                for (var i = 0u; i < RUNS_EACH; i++) {
                    let item = local + i * WORKGROUP;
                    let next4 = k4 + 2u * (item % RUNS);
                    let next = lhs_pair(lhs_rows[i], next4);
                    x[2u * i] = next.first;
                    x[2u * i + 1u] = next.second;
                    w[i] = load_whole_run(min(n0 + item / RUNS, params.n - 1u), next4 >> 1u, params.weight_stride);
                }
            }
            for (var k4_within = 0u; k4_within < STEP4; k4_within += SIZE / 4u) {
                var left: array<Left, MATRICES_M>;
                for (var i = 0u; i < MATRICES_M; i++) {
                    left[i] = coopLoadT<Left>(&lhs_tile[(x_row + SIZE * i) * ROW + k4_within * PER_FOUR], ROW);
                }
                // A row of W is a column of the right factor.
                var right: array<Right, MATRICES_N>;
                for (var j = 0u; j < MATRICES_N; j++) {
                    right[j] = coopLoad<Right>(&weight_tile[(w_row + SIZE * j) * ROW + k4_within * PER_FOUR], ROW);
                }
                for (var i = 0u; i < MATRICES_M; i++) {
                    for (var j = 0u; j < MATRICES_N; j++) {
                        sums[MATRICES_N * i + j] = coopMultiplyAdd(left[i], right[j], sums[MATRICES_N * i + j]);
                    }
                }
            }
            workgroupBarrier();
        }
        for (var i = 0u; i < MATRICES_M * MATRICES_N; i++) {
            // The matrices are rotated to index 0, one after the other: a computed index would put all of them into memory.
            let sum = sums[0];
            for (var j = 0u; j < MATRICES_M * MATRICES_N - 1u; j++) {
                sums[j] = sums[j + 1u];
            }
            if part < PARTS {
                coopStoreT(sum, &output_matrices[part * SIZE * SIZE], SIZE);
            }
            workgroupBarrier();
            let corner = vec2(SIZE * (i / MATRICES_N), SIZE * (i % MATRICES_N));
            store_matrices(local, first, min(first + subgroups, PARTS), vec2(m0, n0) + corner, count);
            workgroupBarrier();
        }
    }
}

fn lhs_or_zero(lhs_row: LhsRow, k4: u32, fours: u32) -> vec4<f32> {
    return select(vec4(0.0), lhs4(lhs_row, lhs_column_at(min(k4, fours - 1u))), k4 < fours);
}

// Stores the matrices of parts `first` to `last` in `output_matrices`; `corner` is the first element of part 0's.
fn store_matrices(local: u32, first: u32, last: u32, corner: vec2<u32>, count: u32) {
    const FOURS: u32 = SIZE * SIZE / 4u;
    for (var item = first * FOURS + local; item < last * FOURS; item += WORKGROUP) {
        let part = item / FOURS;
        let at = 4u * (item % FOURS);
        let m = corner.x + SUB_M * (part / PARTS_N) + at / SIZE;
        let n = corner.y + SUB_N * (part % PARTS_N) + at % SIZE;
        if m < count && n < params.n {
            let start = part * SIZE * SIZE + at;
            store_sums4(m, n, vec4(output_matrices[start], output_matrices[start + 1u],
                                   output_matrices[start + 2u], output_matrices[start + 3u]));
        }
    }
}
