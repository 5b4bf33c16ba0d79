// Rounds rows of x to 8 bits in groups of 32 along the row (as llama.cpp's Q8_1), once for all tiles of a product; with
// NORM after an RMS norm. x [rows, k] ->
//     bytes  [ceil(rows / 32)][groups][32][2] vec4<u32>: round(127 x / most) of a group of a row, `most` being its
//            largest magnitude. Words 2 i and 2 i + 1 have columns 8 i .. 8 i + 7: four and four, or, with EVEN_ODD, the
//            even and the odd ones.
//     scales [ceil(rows / 32)][groups][32] vec2<f32>: the group's scale and the sum of its rounded elements.
// Dispatch: one workgroup per row (folded over x and y). Rows are those of the row map (rows_*.wgsl).
struct Params {
    m: u32,             // rows
    k: u32,             // columns
    route_base: u32,    // start of this expert's list in `routes`
    route_divisor: u32,
    eps: f32,           // of the norm
}

override NORM: u32 = 0;
override UNIT_OFFSET: u32 = 0; // the stored gain is one less than the gain
override EVEN_ODD: u32 = 0;

@group(0) @binding(4) var<storage, read_write> scales: array<vec2<f32>>;
@group(0) @binding(7) var<storage, read_write> bytes: array<vec4<u32>>;
@group(0) @binding(8) var<uniform> params: Params;

fn quantize_group(row: u32, lhs_row: LhsRow, group32: u32, scale: f32) {
    let fours = (params.k + 3u) >> 2u;
    var x: array<vec4<f32>, 8>;
    var most4 = vec4(0.0);
    for (var i = 0u; i < 8u; i++) {
        let k4 = min(8u * group32 + i, fours - 1u);
        var value = lhs4(lhs_row, lhs_column_at(k4));
        if NORM == 1u {
            value *= scale * (gain4(k4, params.k) + vec4(f32(UNIT_OFFSET)));
        }
        x[i] = select(vec4(0.0), value, 8u * group32 + i < fours);
        most4 = max(most4, abs(x[i]));
    }
    let most = max(max(most4.x, most4.y), max(most4.z, most4.w));
    // Values too small for an inverse become zero.
    let steps = select(0.0, 127.0 / most, most > 1e-30);
    let at = 32u * ((row >> 5u) * ((params.k + 31u) >> 5u) + group32) + (row & 31u);
    var total = vec4(0.0);
    for (var half = 0u; half < 2u; half++) {
        var words: array<u32, 4>;
        for (var pair = 0u; pair < 2u; pair++) {
            let a = round(steps * x[4u * half + 2u * pair]);
            let b = round(steps * x[4u * half + 2u * pair + 1u]);
            total += a + b;
            words[2u * pair] = pack4xI8(vec4<i32>(select(a, vec4(a.xz, b.xz), EVEN_ODD == 1u)));
            words[2u * pair + 1u] = pack4xI8(vec4<i32>(select(b, vec4(a.yw, b.yw), EVEN_ODD == 1u)));
        }
        bytes[2u * at + half] = vec4(words[0], words[1], words[2], words[3]);
    }
    let unit = most / 127.0;
    scales[at] = vec2(unit, unit * (total.x + total.y + total.z + total.w));
}

@compute @workgroup_size(WORKGROUP)
fn quantize_rows(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let m = group.y * groups.x + group.x;
    // The same for the whole workgroup.
    if m >= row_count() {
        return;
    }
    let fours = (params.k + 3u) >> 2u;
    let groups32 = (params.k + 31u) >> 5u;
    let row = input_row(m);
    let lhs_row = lhs_row_at(row);
    var scale = 1.0;
    if NORM == 1u {
        var squares = vec4(0.0);
        for (var k4 = local; k4 < fours; k4 += WORKGROUP) {
            let x = lhs4(lhs_row, lhs_column_at(k4));
            squares += x * x;
        }
        let sum = workgroup_sum4(squares, local);
        scale = inverseSqrt((sum.x + sum.y + sum.z + sum.w) / f32(params.k) + params.eps);
    }
    for (var group32 = local; group32 < groups32; group32 += WORKGROUP) {
        quantize_group(row, lhs_row, group32, scale);
    }
}
