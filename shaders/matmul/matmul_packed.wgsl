// y = x W^T for many rows of x and quantised weights, on devices that multiply four pairs of 8-bit integers at a time.
// x was rounded to 8 bits in groups of 32 along the row (quantize_rows.wgsl). Tiles of TILE_M rows of x by 64 rows of W
// (tiles_64.wgsl); GROUPS groups of both are staged in workgroup memory at a time. 128 invocations compute 8 x 4 or
// 8 x 8 outputs each, 32 columns of an output with 8 instructions and 3 to 5 more for the scales.
// Dispatch: (ceil(n / 64), ceil(m / TILE_M), 1).
@group(0) @binding(0) var<storage, read> lhs_bytes: array<vec4<u32>>;
@group(0) @binding(6) var<storage, read> lhs_scales: array<vec2<f32>>;

const GROUPS: u32 = 2u;
const LHS: u32 = GROUPS * TILE_M; // groups of x in the tile
const WEIGHTS: u32 = GROUPS * TILE_N;

// [group][half][slot]: neighbouring invocations read neighbouring vectors.
var<workgroup> lhs_tile: array<vec4<u32>, 2u * LHS>;
var<workgroup> weight_tile: array<vec4<u32>, 2u * WEIGHTS>;
// [group][slot]. Of a row of x: its scale and the sum of its elements; of a row of W: the result of byte_scales.
var<workgroup> lhs_tile_scales: array<vec2<f32>, LHS>;
var<workgroup> weight_tile_scales: array<vec2<f32>, WEIGHTS>;

@compute @workgroup_size(128)
fn matmul_packed(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let m0 = group.y * TILE_M;
    let n0 = group.x * TILE_N;
    let count = row_count();
    // The same for the whole workgroup.
    if m0 >= count {
        return;
    }
    let groups = (params.k + 31u) >> 5u;
    // An invocation stages a group of COLUMNS4 rows of x, and of a row of W.
    let half = local / TILE_N;
    let row = local % TILE_N;
    let w_row = min(n0 + row, params.n - 1u);
    let my_m = local / LANES_N; // rows 8 my_m ..
    let my_n = local % LANES_N; // columns COLUMNS my_n ..
    var lhs_at: array<u32, COLUMNS4>;
    for (var i = 0u; i < COLUMNS4; i++) {
        let x_row = input_row(min(m0 + row + TILE_N * i, count - 1u));
        lhs_at[i] = 32u * (x_row >> 5u) * groups + (x_row & 31u);
    }

    var sums: array<vec4<f32>, 8u * COLUMNS4>; // [four columns][row], component: column
    for (var first = 0u; first < groups; first += GROUPS) {
        let g = min(first + half, groups - 1u);
        for (var i = 0u; i < COLUMNS4; i++) {
            let at = lhs_at[i] + 32u * g;
            let slot = lhs_slot(row + TILE_N * i);
            lhs_tile[2u * TILE_M * half + slot] = lhs_bytes[2u * at];
            lhs_tile[(2u * half + 1u) * TILE_M + slot] = lhs_bytes[2u * at + 1u];
            lhs_tile_scales[TILE_M * half + slot] = lhs_scales[at];
        }
        let loaded = load_row_group(w_row, g, params.weight_stride);
        let slot = weight_slot(row);
        weight_tile[2u * TILE_N * half + slot] = group_bytes(loaded, 0u);
        weight_tile[(2u * half + 1u) * TILE_N + slot] = group_bytes(loaded, 1u);
        weight_tile_scales[TILE_N * half + slot] = byte_scales(loaded);
        workgroupBarrier();
        // Not unrolled: Intel's compiler would load both groups at once and spill.
        let steps = min(GROUPS, groups - first);
        for (var step = 0u; step < steps; step++) {
            for (var j = 0u; j < COLUMNS4; j++) {
                let at = 2u * TILE_N * step + 4u * LANES_N * j + my_n;
                let scale_at = TILE_N * step + 4u * LANES_N * j + my_n;
                let a0 = weight_tile[at];
                let a1 = weight_tile[at + LANES_N];
                let a2 = weight_tile[at + 2u * LANES_N];
                let a3 = weight_tile[at + 3u * LANES_N];
                let b0 = weight_tile[at + TILE_N];
                let b1 = weight_tile[at + TILE_N + LANES_N];
                let b2 = weight_tile[at + TILE_N + 2u * LANES_N];
                let b3 = weight_tile[at + TILE_N + 3u * LANES_N];
                let s0 = weight_tile_scales[scale_at];
                let s1 = weight_tile_scales[scale_at + LANES_N];
                let s2 = weight_tile_scales[scale_at + 2u * LANES_N];
                let s3 = weight_tile_scales[scale_at + 3u * LANES_N];
                let scale_1 = vec4(s0.x, s1.x, s2.x, s3.x);
                let scale_2 = vec4(s0.y, s1.y, s2.y, s3.y);
                for (var i = 0u; i < 8u; i++) {
                    let x = 2u * TILE_M * step + LANES_M * i + my_m;
                    let x0 = lhs_tile[x];
                    let x1 = lhs_tile[x + TILE_M];
                    let scale = lhs_tile_scales[TILE_M * step + LANES_M * i + my_m];
                    let low = vec4(dot16(x0, a0), dot16(x0, a1), dot16(x0, a2), dot16(x0, a3));
                    let high = vec4(dot16(x1, b0), dot16(x1, b1), dot16(x1, b2), dot16(x1, b3));
                    sums[8u * j + i] = add_scaled(sums[8u * j + i], low, high, scale, scale_1, scale_2);
                }
            }
        }
        workgroupBarrier();
    }
    for (var j = 0u; j < COLUMNS4; j++) {
        let n = n0 + 4u * (COLUMNS4 * my_n + j);
        for (var i = 0u; i < 8u; i++) {
            let m = m0 + 8u * my_m + i;
            if m < count && n < params.n {
                store_sums4(m, n, sums[8u * j + i]);
            }
        }
    }
}

fn dot16(a: vec4<u32>, b: vec4<u32>) -> i32 {
    return dot4I8Packed(a.x, b.x) + dot4I8Packed(a.y, b.y) + dot4I8Packed(a.z, b.z) + dot4I8Packed(a.w, b.w);
}
