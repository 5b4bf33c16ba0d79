// y = x W^T for many rows of x and quantised weights, on devices that multiply four pairs of 8-bit integers at a time.
// x is rounded to 8 bits when it is staged, in groups of 32 along the row with a scale each (as llama.cpp's Q8_1).
// Tiles of 64 rows of x by 64 rows of W; one group of both is staged in workgroup memory at a time. 128 invocations
// compute 8 x 4 outputs each, 32 columns with 8 instructions. Dispatch: (ceil(n / 64), ceil(m / 64), 1).
const STRIDE: u32 = 3u; // of a row: two vectors of bytes, and so that neighbouring rows begin in different banks

var<workgroup> lhs_tile: array<vec4<u32>, TILE_N * STRIDE>;
var<workgroup> weight_tile: array<vec4<u32>, TILE_N * STRIDE>;
// Of each row of x: its scale and the sum of its elements; of each row of W: the result of weight_scale.
var<workgroup> lhs_scales: array<vec2<f32>, TILE_N>;
var<workgroup> weight_scales: array<vec2<f32>, TILE_N>;

@compute @workgroup_size(128)
fn matmul_packed(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let m0 = group.y * TILE_N;
    let n0 = group.x * TILE_N;
    let count = row_count();
    // The same for the whole workgroup.
    if m0 >= count {
        return;
    }
    // One half of the invocations stages x, the other W, a row each.
    let row = local % TILE_N;
    let lhs_row = lhs_row_at(input_row(min(m0 + row, count - 1u)));
    let w_row = min(n0 + row, params.n - 1u);
    let groups32 = (params.k + 31u) >> 5u;
    let my_m = local >> 4u; // rows 8 my_m ..
    let my_n = local & 15u; // columns 4 my_n ..

    var sums: array<vec4<f32>, 8>; // [row of x], component: row of W
    for (var group32 = 0u; group32 < groups32; group32++) {
        if local < TILE_N {
            stage_lhs(lhs_slot(row), lhs_row, group32);
        } else {
            stage_weight(weight_slot(row), w_row, group32);
        }
        workgroupBarrier();
        let w0 = weights_of(my_n);
        let w1 = weights_of(my_n + 16u);
        let w2 = weights_of(my_n + 32u);
        let w3 = weights_of(my_n + 48u);
        for (var i = 0u; i < 8u; i++) {
            let x = my_m + 8u * i;
            let of_x = Group(lhs_tile[STRIDE * x], lhs_tile[STRIDE * x + 1u], lhs_scales[x]);
            sums[i] += vec4(product(of_x, w0), product(of_x, w1), product(of_x, w2), product(of_x, w3));
        }
        workgroupBarrier();
    }
    let n = n0 + 4u * my_n;
    for (var i = 0u; i < 8u; i++) {
        let m = m0 + 8u * my_m + i;
        if m < count && n < params.n {
            store_sums4(m, n, sums[i]);
        }
    }
}

// A group of 32 columns of a row: its halves, and the arguments of scaled_sum.
struct Group {
    low: vec4<u32>,
    high: vec4<u32>,
    scale: vec2<f32>,
}

fn weights_of(slot: u32) -> Group {
    return Group(weight_tile[STRIDE * slot], weight_tile[STRIDE * slot + 1u], weight_scales[slot]);
}

fn product(x: Group, w: Group) -> f32 {
    return scaled_sum(dot16(x.low, w.low), dot16(x.high, w.high), x.scale, w.scale);
}

fn dot16(a: vec4<u32>, b: vec4<u32>) -> i32 {
    return dot4I8Packed(a.x, b.x) + dot4I8Packed(a.y, b.y) + dot4I8Packed(a.z, b.z) + dot4I8Packed(a.w, b.w);
}

fn stage_weight(slot: u32, row: u32, group32: u32) {
    for (var half = 0u; half < 2u; half++) {
        let first = byte_pair(row, group32, params.weight_stride, 2u * half);
        let second = byte_pair(row, group32, params.weight_stride, 2u * half + 1u);
        weight_tile[STRIDE * slot + half] = vec4(first, second);
    }
    weight_scales[slot] = weight_scale(row, group32, params.weight_stride);
}

fn stage_lhs(slot: u32, lhs_row: LhsRow, group32: u32) {
    let fours = (params.k + 3u) >> 2u;
    var x: array<vec4<f32>, 8>;
    var most4 = vec4(0.0);
    for (var i = 0u; i < 8u; i++) {
        let k4 = 8u * group32 + i;
        x[i] = select(vec4(0.0), lhs4(lhs_row, lhs_column_at(min(k4, fours - 1u))), k4 < fours);
        most4 = max(most4, abs(x[i]));
    }
    let most = max(max(most4.x, most4.y), max(most4.z, most4.w));
    // Values too small for an inverse become zero.
    let steps = select(0.0, 127.0 / most, most > 1e-30);
    var total = vec4(0.0);
    for (var half = 0u; half < 2u; half++) {
        var words: vec4<u32>;
        for (var pair = 0u; pair < 2u; pair++) {
            let a = round(steps * x[4u * half + 2u * pair]);
            let b = round(steps * x[4u * half + 2u * pair + 1u]);
            total += a + b;
            words[2u * pair] = pack4xI8(vec4<i32>(select(a, vec4(a.xz, b.xz), ALTERNATING)));
            words[2u * pair + 1u] = pack4xI8(vec4<i32>(select(b, vec4(a.yw, b.yw), ALTERNATING)));
        }
        lhs_tile[STRIDE * slot + half] = words;
    }
    let scale = most / 127.0;
    lhs_scales[slot] = vec2(scale, scale * (total.x + total.y + total.z + total.w));
}
