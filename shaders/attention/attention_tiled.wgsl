// Attention with online softmax (see attention_common.wgsl) for many query rows. A workgroup stages ROWS scaled queries
// in workgroup memory and loops over blocks of 64 or 128 keys. For the scores an invocation takes four rows by four
// neighbouring keys, so that 64 multiply-adds need four vectors of keys and four of queries. For the values it owns a
// vector of the head dimension of up to eight rows and takes four keys at a time. HEAD4 and ROWS (8 or 16) are
// constants.
const BLOCK4: u32 = select(16u, 32u, HEAD4 > 32u);      // keys of a block, in fours
const WORKGROUP: u32 = ROWS / 4u * BLOCK4;
const ROW_STEP: u32 = ROWS / 4u;          // for scores, rows of an invocation are this far apart
const VALUE_GROUPS: u32 = WORKGROUP / HEAD4;
const OWNED: u32 = (ROWS + VALUE_GROUPS - 1u) / VALUE_GROUPS;     // for values, rows of an invocation

var<workgroup> query_tile: array<vec4<f32>, HEAD4 * ROWS>;        // [column][row]
var<workgroup> probabilities: array<vec4<f32>, ROWS * BLOCK4>;    // [row][four keys]
var<workgroup> of_keys: array<vec4<f32>, WORKGROUP>;              // maxima or sums over four keys, of four rows
var<workgroup> row_factor: array<f32, ROWS>;
var<workgroup> row_total: array<vec2<f32>, ROWS>;                 // maximum and denominator

fn largest(v: vec4<f32>) -> f32 {
    return max(max(v.x, v.y), max(v.z, v.w));
}

fn total(v: vec4<f32>) -> f32 {
    return (v.x + v.y) + (v.z + v.w);
}

// The scores of the four keys from `key` on, up to and with `last`, for a query at `position`.
fn masked(scores: vec4<f32>, key: u32, last: u32, position: u32) -> vec4<f32> {
    let keys = vec4(key) + vec4(0u, 1u, 2u, 3u);
    return select(vec4(LOWEST), capped(scores), (keys <= vec4(last)) & in_window(position, keys));
}

@compute @workgroup_size(WORKGROUP)
fn attention_tiled(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                   @builtin(local_invocation_index) local: u32) {
    let kv_head = group.y;
    let work = work_of(group);
    let row0 = work.block * ROWS;
    let last_row = query_rows(work) - 1u;
    let range = window_range(work, row0, key_range(work, min(row0 + ROWS - 1u, last_row)));
    if is_idle(work, range) {
        return;
    }
    let last_key = range.y - 1u;
    for (var item = local; item < HEAD4 * ROWS; item += WORKGROUP) {
        let row = item / HEAD4;
        let column = item % HEAD4;
        let at = query_offset(work, min(row0 + row, last_row), kv_head) + column;
        query_tile[column * ROWS + row] = params.scale * queries[at];
    }
    // Scores: keys 4 my_key.. of a block, rows my_row, my_row + ROW_STEP, ...
    let my_key = local % BLOCK4;
    let my_row = local / BLOCK4;
    let rows = min(vec4(row0 + my_row) + ROW_STEP * vec4(0u, 1u, 2u, 3u), vec4(last_row));
    let positions = first_position(work) + rows / params.group;
    let attended = select(vec4(last_key), min(positions, vec4(last_key)), CAUSAL == 1u);
    var maximum = vec4(LOWEST);
    var denominator = vec4(0.0);       // of the keys that this invocation has taken
    // Values: a column of rows first_row, first_row + VALUE_GROUPS, ...
    let column = local % HEAD4;
    let first_row = local / HEAD4;
    var sums: array<vec4<f32>, OWNED>;
    workgroupBarrier();

    for (var block = range.x; block < range.y; block += 4u * BLOCK4) {
        let key = block + 4u * my_key;
        let key_start = (params.key_start + kv_head * HEAD4) / CHUNK;
        let key_stride = params.key_stride / CHUNK;
        let key_at = vec4(key_start) + stored_rows(work, key, last_key) * key_stride;
        var scores = array<vec4<f32>, 4>();    // [row], component: key; Chromium zeroes it only once without a value
        for (var c = 0u; c < params.head_chunks; c++) {
            let c0 = key_chunk(key_at[0] + c);
            let c1 = key_chunk(key_at[1] + c);
            let c2 = key_chunk(key_at[2] + c);
            let c3 = key_chunk(key_at[3] + c);
            for (var h = 0u; h < CHUNK; h++) {
                let k0 = vector(c0, h);
                let k1 = vector(c1, h);
                let k2 = vector(c2, h);
                let k3 = vector(c3, h);
                for (var r = 0u; r < 4u; r++) {
                    let q = query_tile[(c * CHUNK + h) * ROWS + my_row + r * ROW_STEP];
                    scores[r] += vec4(dot(q, k0), dot(q, k1), dot(q, k2), dot(q, k3));
                }
            }
        }
        let s0 = masked(scores[0], key, attended.x, positions.x);
        let s1 = masked(scores[1], key, attended.y, positions.y);
        let s2 = masked(scores[2], key, attended.z, positions.z);
        let s3 = masked(scores[3], key, attended.w, positions.w);
        of_keys[local] = vec4(largest(s0), largest(s1), largest(s2), largest(s3));
        workgroupBarrier();
        let before = maximum;
        for (var i = 0u; i < BLOCK4; i++) {
            maximum = max(maximum, of_keys[my_row * BLOCK4 + i]);
        }
        let factor = exp(before - maximum);
        let p0 = exp(s0 - maximum.x);
        let p1 = exp(s1 - maximum.y);
        let p2 = exp(s2 - maximum.z);
        let p3 = exp(s3 - maximum.w);
        let at = my_row * BLOCK4 + my_key;
        probabilities[at] = p0;
        probabilities[at + ROW_STEP * BLOCK4] = p1;
        probabilities[at + 2u * ROW_STEP * BLOCK4] = p2;
        probabilities[at + 3u * ROW_STEP * BLOCK4] = p3;
        denominator = denominator * factor + vec4(total(p0), total(p1), total(p2), total(p3));
        if my_key == 0u {
            row_factor[my_row] = factor.x;
            row_factor[my_row + ROW_STEP] = factor.y;
            row_factor[my_row + 2u * ROW_STEP] = factor.z;
            row_factor[my_row + 3u * ROW_STEP] = factor.w;
        }
        workgroupBarrier();
        // The last key again stands for those after it, whose probability is 0.
        if first_row < VALUE_GROUPS {
            for (var j = 0u; j < OWNED; j++) {
                sums[j] *= row_factor[min(first_row + j * VALUE_GROUPS, ROWS - 1u)];
            }
            let last = min(4u * BLOCK4 - 1u, last_key - block);
            let value_start = params.value_start + kv_head * HEAD4 + column;
            var at0 = value_start + stored_row(work, block) * params.value_stride;
            let end_of_all = at0 + last * params.value_stride;
            for (var four = 0u; four <= last >> 2u; four++) {
                let end = last_value(end_of_all, at0, last - 4u * four);
                let at1 = min(at0 + params.value_stride, end);
                let at2 = min(at1 + params.value_stride, end);
                let at3 = min(at2 + params.value_stride, end);
                let v0 = value4(at0);
                let v1 = value4(at1);
                let v2 = value4(at2);
                let v3 = value4(at3);
                for (var j = 0u; j < OWNED; j++) {
                    let p = probabilities[min(first_row + j * VALUE_GROUPS, ROWS - 1u) * BLOCK4 + four];
                    var sum = sums[j];
                    sum += p.x * v0;
                    sum += p.y * v1;
                    sum += p.z * v2;
                    sum += p.w * v3;
                    sums[j] = sum;
                }
                at0 = next_value(work, block + min(4u * four + 4u, last), at3, value_start);
            }
        }
    }

    of_keys[local] = denominator;
    workgroupBarrier();
    if my_key == 0u {
        var sum = vec4(0.0);
        for (var i = 0u; i < BLOCK4; i++) {
            sum += of_keys[local + i];
        }
        row_total[my_row] = vec2(maximum.x, sum.x);
        row_total[my_row + ROW_STEP] = vec2(maximum.y, sum.y);
        row_total[my_row + 2u * ROW_STEP] = vec2(maximum.z, sum.z);
        row_total[my_row + 3u * ROW_STEP] = vec2(maximum.w, sum.w);
    }
    workgroupBarrier();
    if first_row >= VALUE_GROUPS {
        return;
    }
    for (var j = 0u; j < OWNED; j++) {
        let r = first_row + j * VALUE_GROUPS;
        if r < ROWS && row0 + r <= last_row {
            store_output(work, row0 + r, kv_head, groups.y, column, sums[j], row_total[r]);
        }
    }
}
