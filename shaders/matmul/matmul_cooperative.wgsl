// y = x W^T for many rows of x on a GPU's matrix units: tiles of TILE rows of x by TILE rows of W; 32 columns of both
// are staged in workgroup memory in f16 at a time. A subgroup computes a quarter of a tile in matrices of SIZE x SIZE
// (cooperative_*); with fewer subgroups than quarters, each computes several in turn. Dispatch: (ceil(n / TILE),
// ceil(m / TILE), 1).
const QUARTERS: u32 = 4u;
const QUARTER: u32 = TILE / 2u;
const MATRICES: u32 = QUARTER / SIZE;
const STEP4: u32 = 8u; // columns staged, in fours
// So that neighbouring rows begin in different banks, and all at a multiple of 16 bytes, as loads of matrices require.
const ROW: u32 = 4u * STEP4 + 8u;
// Runs of eight columns of a row that are staged, and the number of them that an invocation stages.
const RUNS: u32 = STEP4 / 2u;
const RUNS_EACH: u32 = TILE * RUNS / WORKGROUP;

var<workgroup> lhs_tile: array<f16, TILE * ROW>;
var<workgroup> weight_tile: array<f16, TILE * ROW>;
// A finished matrix of each quarter.
var<workgroup> output_matrices: array<f32, QUARTERS * SIZE * SIZE>;

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
    var lhs_rows: array<LhsRow, RUNS_EACH>;
    for (var i = 0u; i < RUNS_EACH; i++) {
        lhs_rows[i] = lhs_row_at(input_row(min(m0 + (local + i * WORKGROUP) / RUNS, count - 1u)));
    }
    for (var first = 0u; first < QUARTERS; first += max(subgroups, 1u)) {
        // The same for a whole subgroup. Subgroups past the quarters compute the last one again, and store nothing.
        let quarter = first + subgroup;
        let within = min(quarter, QUARTERS - 1u);
        let x_row = QUARTER * (within >> 1u);
        let w_row = QUARTER * (within & 1u);
        var sums: array<Sums, MATRICES * MATRICES>;
        for (var i = 0u; i < MATRICES * MATRICES; i++) {
            sums[i] = Sums();
        }
        for (var k4 = 0u; k4 < fours; k4 += STEP4) {
            for (var i = 0u; i < RUNS_EACH; i++) {
                stage_eight_columns(local + i * WORKGROUP, n0, k4, fours, lhs_rows[i]);
            }
            workgroupBarrier();
            for (var k = 0u; k < 4u * STEP4; k += SIZE) {
                var left: array<Left, MATRICES>;
                for (var i = 0u; i < MATRICES; i++) {
                    left[i] = coopLoadT<Left>(&lhs_tile[(x_row + SIZE * i) * ROW + k], ROW);
                }
                for (var j = 0u; j < MATRICES; j++) {
                    // A row of W is a column of the right factor.
                    let right = coopLoad<Right>(&weight_tile[(w_row + SIZE * j) * ROW + k], ROW);
                    for (var i = 0u; i < MATRICES; i++) {
                        sums[MATRICES * i + j] = coopMultiplyAdd(left[i], right, sums[MATRICES * i + j]);
                    }
                }
            }
            workgroupBarrier();
        }
        for (var i = 0u; i < MATRICES * MATRICES; i++) {
            if quarter < QUARTERS {
                coopStoreT(sums[i], &output_matrices[quarter * SIZE * SIZE], SIZE);
            }
            workgroupBarrier();
            let corner = vec2(SIZE * (i / MATRICES), SIZE * (i % MATRICES));
            store_matrices(local, first, min(first + subgroups, QUARTERS), vec2(m0, n0) + corner, count);
            workgroupBarrier();
        }
    }
}

// Stages run `item` of the tiles' columns from 4 k4: eight columns of a row of both.
fn stage_eight_columns(item: u32, n0: u32, k4: u32, fours: u32, lhs_row: LhsRow) {
    let row = item / RUNS;
    let w_row = min(n0 + row, params.n - 1u);
    let step4 = 2u * (item % RUNS);
    let scale = weight_scale(w_row, min(k4 + step4, fours - 1u) >> 3u, params.weight_stride);
    for (var i = 0u; i < 2u; i++) {
        let inside = k4 + step4 + i < fours;
        let k = min(k4 + step4 + i, fours - 1u);
        let x = stage(select(vec4(0.0), lhs4(lhs_row, lhs_column_at(k)), inside));
        let w = stage(select(vec4(0.0), scaled_weight4(w_row, k, params.weight_stride, scale), inside));
        let at = row * ROW + 4u * (step4 + i);
        for (var column = 0u; column < 4u; column++) {
            lhs_tile[at + column] = x[column];
            weight_tile[at + column] = w[column];
        }
    }
}

// Stores the matrices of quarters `first` to `last` in `output_matrices`; `corner` is the first element of quarter 0's.
fn store_matrices(local: u32, first: u32, last: u32, corner: vec2<u32>, count: u32) {
    const FOURS: u32 = SIZE * SIZE / 4u;
    for (var item = first * FOURS + local; item < last * FOURS; item += WORKGROUP) {
        let quarter = item / FOURS;
        let at = 4u * (item % FOURS);
        let m = corner.x + QUARTER * (quarter >> 1u) + at / SIZE;
        let n = corner.y + QUARTER * (quarter & 1u) + at % SIZE;
        if m < count && n < params.n {
            let start = quarter * SIZE * SIZE + at;
            store_sums4(m, n, vec4(output_matrices[start], output_matrices[start + 1u], output_matrices[start + 2u], output_matrices[start + 3u]));
        }
    }
}
