// y = x W^T for many rows of x in f16 arithmetic, for GPUs that do two multiply-adds of f16 in the place of one of f32.
// Tiles of TILE_M rows of x by TILE_N rows of W; STEP columns of both are staged in f16, transposed, so that four
// neighbouring rows are a vector. An invocation adds ROWS x COLUMNS outer products, one for each column, in f16. After
// STEP columns their sums are added to sums in f32.
// Dispatch: (ceil(n / TILE_N), ceil(m / TILE_M), 1).
const COLUMNS: u32 = 8u;
const LANES_M: u32 = 16u;
const LANES_N: u32 = 8u;
const ROWS4: u32 = ROWS / 4u;
const COLUMNS4: u32 = COLUMNS / 4u;
const WORKGROUP: u32 = LANES_M * LANES_N;
const TILE_M: u32 = LANES_M * ROWS;
const TILE_N: u32 = LANES_N * COLUMNS;
const STEP4: u32 = STEP / 4u;
// Fours of rows in a column, and two more: columns begin in different banks, at a multiple of 16 bytes.
const LHS_COLUMN: u32 = TILE_M / 4u + 2u;
const WEIGHT_COLUMN: u32 = TILE_N / 4u + 2u;
// Blocks of four rows by four columns that an invocation stages.
const LHS_BLOCKS: u32 = TILE_M * STEP / (16u * WORKGROUP);
const WEIGHT_BLOCKS: u32 = TILE_N * STEP / (16u * WORKGROUP);

var<workgroup> lhs_tile: array<vec4<f16>, STEP * LHS_COLUMN>;
var<workgroup> weight_tile: array<vec4<f16>, STEP * WEIGHT_COLUMN>;

@compute @workgroup_size(WORKGROUP)
fn matmul_f16(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let m0 = group.y * TILE_M;
    let n0 = group.x * TILE_N;
    let count = row_count();
    // The same for the whole workgroup.
    if m0 >= count {
        return;
    }
    let fours = (params.k + 3u) >> 2u;
    // Neighbouring invocations stage neighbouring columns.
    let load_k4 = local % STEP4;
    let load_row4 = local / STEP4;
    var lhs_rows: array<LhsRow, 4u * LHS_BLOCKS>;
    for (var i = 0u; i < LHS_BLOCKS; i++) {
        for (var r = 0u; r < 4u; r++) {
            let row = m0 + 4u * (load_row4 + i * (WORKGROUP / STEP4)) + r;
            lhs_rows[4u * i + r] = lhs_row_at(input_row(min(row, count - 1u)));
        }
    }
    let my_m = local / LANES_N; // rows ROWS my_m ..
    let my_n = local % LANES_N; // columns COLUMNS my_n ..

    var sums: array<vec4<f32>, ROWS * COLUMNS4>; // [four columns][row]
    for (var k4 = 0u; k4 < fours; k4 += STEP4) {
        // Columns past the end are any finite number times zero.
        let k = k4 + load_k4;
        let within = min(k, fours - 1u);
        let column = lhs_column_at(within);
        for (var i = 0u; i < LHS_BLOCKS; i++) {
            let x = transpose(mat4x4<f32>(
                lhs4(lhs_rows[4u * i], column), lhs4(lhs_rows[4u * i + 1u], column),
                lhs4(lhs_rows[4u * i + 2u], column), lhs4(lhs_rows[4u * i + 3u], column)));
            for (var c = 0u; c < 4u; c++) {
                lhs_tile[(4u * load_k4 + c) * LHS_COLUMN + load_row4 + i * (WORKGROUP / STEP4)] = stage(x[c]);
            }
        }
        for (var i = 0u; i < WEIGHT_BLOCKS; i++) {
            let row4 = load_row4 + i * (WORKGROUP / STEP4);
            var w: mat4x4<f32>;
            for (var r = 0u; r < 4u; r++) {
                w[r] = weight4(min(n0 + 4u * row4 + r, params.n - 1u), within, params.weight_stride);
            }
            w = transpose(w);
            for (var c = 0u; c < 4u; c++) {
                weight_tile[(4u * load_k4 + c) * WEIGHT_COLUMN + row4] = select(vec4<f16>(), vec4<f16>(w[c]), k < fours);
            }
        }
        workgroupBarrier();
        var block: array<vec4<f16>, ROWS * COLUMNS4>;
        for (var i = 0u; i < ROWS * COLUMNS4; i++) {
            block[i] = vec4<f16>();
        }
        for (var step = 0u; step < STEP; step++) {
            var w: array<vec4<f16>, COLUMNS4>;
            for (var j = 0u; j < COLUMNS4; j++) {
                w[j] = weight_tile[step * WEIGHT_COLUMN + COLUMNS4 * my_n + j];
            }
            for (var i = 0u; i < ROWS4; i++) {
                let x = lhs_tile[step * LHS_COLUMN + ROWS4 * my_m + i];
                for (var r = 0u; r < 4u; r++) {
                    for (var j = 0u; j < COLUMNS4; j++) {
                        let at = ROWS * j + 4u * i + r;
                        block[at] = fma(vec4(x[r]), w[j], block[at]);
                    }
                }
            }
        }
        for (var i = 0u; i < ROWS * COLUMNS4; i++) {
            // A sum beyond f16 is infinite: f16's largest number stands for it, as for values of x.
            sums[i] += vec4<f32>(clamp(block[i], vec4<f16>(-65504.0h), vec4<f16>(65504.0h)));
        }
        workgroupBarrier();
    }
    for (var j = 0u; j < COLUMNS4; j++) {
        let n = n0 + COLUMNS * my_n + 4u * j;
        for (var i = 0u; i < ROWS; i++) {
            let m = m0 + ROWS * my_m + i;
            if m < count && n < params.n {
                store_sums4(m, n, sums[ROWS * j + i]);
            }
        }
    }
}

fn stage(four: vec4<f32>) -> vec4<f16> {
    return vec4<f16>(clamp(four, vec4(-65504.0), vec4(65504.0)));
}
