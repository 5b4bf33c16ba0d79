// Attention with online softmax (see attention_common.wgsl) for few query rows: reading keys and values takes most of
// the time. They are read in chunks of 16 bytes. For the scores four neighbouring invocations share four keys and take
// every fourth chunk of each; for the values an invocation owns a chunk of up to four rows and takes every
// VALUE_GROUPS-th four of keys. HEAD4, ROWS (at most 8) and CHUNK, the vec4s of a chunk, are constants.
const WORKGROUP: u32 = 64u;
const BLOCK4: u32 = 16u;                          // keys of a block, in fours
const CHUNKS: u32 = HEAD4 / CHUNK;                // of a head
const SHARE: u32 = (CHUNKS + 3u) / 4u;            // chunks of a key that an invocation takes
// For the values, invocations with the same keys share the rows, so that sums stay in registers.
const ROW_SHARES: u32 = select(1u, 2u, ROWS * CHUNK > 8u);
const OWNED: u32 = ROWS / ROW_SHARES;
const VALUE_GROUPS: u32 = WORKGROUP / (CHUNKS * ROW_SHARES);
const FOURS: u32 = ROWS * BLOCK4;                 // scores of a block, in fours
const FOURS_EACH: u32 = (FOURS + WORKGROUP - 1u) / WORKGROUP;

var<workgroup> query_tile: array<vec4<f32>, SHARE * CHUNK * ROWS * 4u>;     // [share][vec4][row][part], 0 past the head
var<workgroup> exchange: array<vec4<f32>, max(ROWS, CHUNK) * WORKGROUP>;
var<workgroup> probabilities: array<vec4<f32>, FOURS>;                      // [row][four keys]
var<workgroup> of_four: array<f32, FOURS>;                                  // maxima or sums of these
var<workgroup> row_factor: array<f32, ROWS>;
var<workgroup> row_total: array<vec2<f32>, ROWS>;                           // maximum and denominator

@compute @workgroup_size(WORKGROUP)
fn attention_decode(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
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
    for (var item = local; item < SHARE * CHUNK * ROWS * 4u; item += WORKGROUP) {
        let row = item / 4u % ROWS;
        let h = item / (4u * ROWS) % CHUNK;
        let column = (item % 4u + item / (4u * ROWS * CHUNK) * 4u) * CHUNK + h;
        let at = query_offset(work, min(row0 + row, last_row), kv_head) + min(column, HEAD4 - 1u);
        query_tile[item] = select(vec4(0.0), params.scale * queries[at], column < HEAD4);
    }
    let key_start = (params.key_start + kv_head * HEAD4) / CHUNK;
    let key_stride = params.key_stride / CHUNK;
    let part = local % 4u;
    // Scores are masked and exponentiated in fours of keys, an invocation taking every WORKGROUP-th.
    var maximum: array<f32, FOURS_EACH>;
    var denominator: array<f32, FOURS_EACH>;
    for (var i = 0u; i < FOURS_EACH; i++) {
        maximum[i] = LOWEST;
    }
    let value_stride = params.value_stride / CHUNK;
    let my_chunk = local % CHUNKS;
    let first_row = local / CHUNKS % ROW_SHARES * OWNED;
    let value_group = local / (CHUNKS * ROW_SHARES);
    var sums: array<vec4<f32>, OWNED * CHUNK>;
    workgroupBarrier();

    for (var block = range.x; block < range.y; block += 4u * BLOCK4) {
        let key = block + (local & 60u);
        var scores = array<vec4<f32>, ROWS>();    // component: key; a value, as in attention_tiled.wgsl
        let key_at = vec4(key_start) + stored_rows(work, key, last_key) * key_stride;
        for (var i = 0u; 4u * i < params.head_chunks; i++) {
            let chunk = min(4u * i + part, CHUNKS - 1u);
            let c0 = key_chunk(key_at[0] + chunk);
            let c1 = key_chunk(key_at[1] + chunk);
            let c2 = key_chunk(key_at[2] + chunk);
            let c3 = key_chunk(key_at[3] + chunk);
            for (var h = 0u; h < CHUNK; h++) {
                let k0 = vector(c0, h);
                let k1 = vector(c1, h);
                let k2 = vector(c2, h);
                let k3 = vector(c3, h);
                for (var r = 0u; r < ROWS; r++) {
                    let q = query_tile[((i * CHUNK + h) * ROWS + r) * 4u + part];
                    scores[r] += vec4(dot(q, k0), dot(q, k1), dot(q, k2), dot(q, k3));
                }
            }
        }
        for (var r = 0u; r < ROWS; r++) {
            exchange[r * WORKGROUP + local] = scores[r];
        }
        workgroupBarrier();
        for (var i = 0u; i < FOURS_EACH; i++) {
            let four = local + i * WORKGROUP;
            if four < FOURS {
                let first = 4u * four;
                let s = (exchange[first] + exchange[first + 1u]) + (exchange[first + 2u] + exchange[first + 3u]);
                let row = min(row0 + four / BLOCK4, last_row);
                let position = first_position(work) + row / params.group;
                let attended = select(last_key, min(position, last_key), CAUSAL == 1u);
                let at = vec4(block + 4u * (four % BLOCK4)) + vec4(0u, 1u, 2u, 3u);
                let seen = select(vec4(LOWEST), capped(s), (at <= vec4(attended)) & in_window(position, at));
                probabilities[four] = seen;
                of_four[four] = max(max(seen.x, seen.y), max(seen.z, seen.w));
            }
        }
        workgroupBarrier();
        for (var i = 0u; i < FOURS_EACH; i++) {
            let four = local + i * WORKGROUP;
            if four < FOURS {
                let before = maximum[i];
                var largest = before;
                for (var j = 0u; j < BLOCK4; j++) {
                    largest = max(largest, of_four[four / BLOCK4 * BLOCK4 + j]);
                }
                let factor = exp(before - largest);
                let p = exp(probabilities[four] - largest);
                probabilities[four] = p;
                maximum[i] = largest;
                denominator[i] = denominator[i] * factor + ((p.x + p.y) + (p.z + p.w));
                if four % BLOCK4 == 0u {
                    row_factor[four / BLOCK4] = factor;
                }
            }
        }
        workgroupBarrier();
        // The last key again stands for those after it, whose probability is 0.
        if value_group < VALUE_GROUPS {
            for (var i = 0u; i < OWNED * CHUNK; i++) {
                sums[i] *= row_factor[first_row + i % OWNED];
            }
            let value_start = (params.value_start + kv_head * HEAD4) / CHUNK + my_chunk;
            let last = min(4u * BLOCK4 - 1u, last_key - block);
            for (var four = value_group; four <= last >> 2u; four += VALUE_GROUPS) {
                let value = block + 4u * four;
                let value_at = vec4(value_start) + stored_rows_from(work, value, last_key) * value_stride;
                let c0 = value_chunk(value_at[0]);
                let c1 = value_chunk(value_at[1]);
                let c2 = value_chunk(value_at[2]);
                let c3 = value_chunk(value_at[3]);
                for (var h = 0u; h < CHUNK; h++) {
                    let v0 = vector(c0, h);
                    let v1 = vector(c1, h);
                    let v2 = vector(c2, h);
                    let v3 = vector(c3, h);
                    for (var r = 0u; r < OWNED; r++) {
                        let p = probabilities[(first_row + r) * BLOCK4 + four];
                        var sum = sums[h * OWNED + r];
                        sum += p.x * v0;
                        sum += p.y * v1;
                        sum += p.z * v2;
                        sum += p.w * v3;
                        sums[h * OWNED + r] = sum;
                    }
                }
            }
        }
    }

    for (var i = 0u; i < FOURS_EACH; i++) {
        let four = local + i * WORKGROUP;
        if four < FOURS {
            of_four[four] = denominator[i];
        }
    }
    workgroupBarrier();
    for (var i = 0u; i < FOURS_EACH; i++) {
        let four = local + i * WORKGROUP;
        if four < FOURS && four % BLOCK4 == 0u {
            var sum = 0.0;
            for (var j = 0u; j < BLOCK4; j++) {
                sum += of_four[four + j];
            }
            row_total[four / BLOCK4] = vec2(maximum[i], sum);
        }
    }
    // The sums of all groups of invocations, row by row.
    for (var r = 0u; r < ROWS; r++) {
        for (var h = 0u; h < CHUNK; h++) {
            exchange[h * WORKGROUP + local] = sums[h * OWNED + r % OWNED];
        }
        workgroupBarrier();
        if local < HEAD4 && row0 + r <= last_row {
            let at = local % CHUNK * WORKGROUP + local / CHUNK + r / OWNED * CHUNKS;
            var sum = exchange[at];
            for (var i = 1u; i < VALUE_GROUPS; i++) {
                sum += exchange[at + i * CHUNKS * ROW_SHARES];
            }
            store_output(work, row0 + r, kv_head, groups.y, local, sum, row_total[r]);
        }
        workgroupBarrier();
    }
}
