// Attention with online softmax (see attention_common.wgsl), keys in blocks of 64, scores in workgroup memory.
override HEAD4: u32 = 16;      // head dimension in vec4s
override COLUMNS: u32 = 16;    // HEAD4 rounded up to a power of two, at most 64
override ROWS: u32 = 16;       // query rows of a workgroup: 1, 2, 4, 8 or 16

const BLOCK: u32 = 64u;

var<workgroup> scores: array<f32, 16 * BLOCK>;
var<workgroup> quarter: array<f32, BLOCK>;
var<workgroup> row_maximum: array<f32, 16>;
var<workgroup> row_sum: array<f32, 16>;
var<workgroup> row_factor: array<f32, 16>;

@compute @workgroup_size(64)
fn attention(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
             @builtin(local_invocation_index) local: u32) {
    let kv_head = group.y;
    let work = work_of(group);
    let row0 = work.block * ROWS;
    let row_count = query_rows(work);
    let range = window_range(work, row0, key_range(work, min(row0 + ROWS, row_count) - 1u));
    if is_idle(work, range) {
        return;
    }
    let key_begin = range.x;
    let key_end = range.y;
    if local < 16u {
        row_maximum[local] = LOWEST;
        row_sum[local] = 0.0;
    }
    // In the second half an invocation owns a column of the head dimension and every row_step-th row.
    let column = local % COLUMNS;
    let first_row = local / COLUMNS;
    let row_step = BLOCK / COLUMNS;
    let owned = (ROWS + row_step - 1u) / row_step;
    var sums: array<vec4<f32>, 16>;

    for (var block = key_begin; block < key_end; block += BLOCK) {
        // Scores: an invocation takes one key against all rows.
        let key = block + local;
        let key_at = params.key_start + stored_row(work, min(key, key_end - 1u)) * params.key_stride + kv_head * HEAD4;
        var dots = array<f32, 16>();
        for (var c = 0u; c < HEAD4; c++) {
            let k = key4(key_at + c);
            for (var r = 0u; r < ROWS; r++) {
                dots[r] += dot(queries[query_offset(work, min(row0 + r, row_count - 1u), kv_head) + c], k);
            }
        }
        for (var r = 0u; r < ROWS; r++) {
            let attended = attends(work, min(row0 + r, row_count - 1u), key, key_end);
            scores[r * BLOCK + local] = select(LOWEST, capped(vec4(dots[r] * params.scale)).x, attended);
        }
        workgroupBarrier();
        // Softmax: four invocations a row, 16 keys each.
        let r = local >> 2u;
        let begin = r * BLOCK + (local & 3u) * 16u;
        if r < ROWS {
            var maximum = LOWEST;
            for (var i = 0u; i < 16u; i++) {
                maximum = max(maximum, scores[begin + i]);
            }
            quarter[local] = maximum;
        }
        workgroupBarrier();
        var maximum = LOWEST;
        if r < ROWS {
            let q = local & 60u;
            maximum = max(max(quarter[q], quarter[q + 1u]), max(quarter[q + 2u], quarter[q + 3u]));
            maximum = max(maximum, row_maximum[r]);
        }
        workgroupBarrier();
        if r < ROWS {
            var sum = 0.0;
            for (var i = 0u; i < 16u; i++) {
                let p = exp(scores[begin + i] - maximum);
                scores[begin + i] = p;
                sum += p;
            }
            quarter[local] = sum;
            if (local & 3u) == 0u {
                row_factor[r] = exp(row_maximum[r] - maximum);
                row_maximum[r] = maximum;
            }
        }
        workgroupBarrier();
        if r < ROWS && (local & 3u) == 0u {
            row_sum[r] = row_sum[r] * row_factor[r]
                + (quarter[local] + quarter[local + 1u] + quarter[local + 2u] + quarter[local + 3u]);
        }
        // Values.
        if column < HEAD4 {
            for (var j = 0u; j < owned; j++) {
                sums[j] *= row_factor[min(first_row + j * row_step, ROWS - 1u)];
            }
            let in_block = min(BLOCK, key_end - block);
            let value_start = params.value_start + kv_head * HEAD4 + column;
            var at = value_start + stored_row(work, block) * params.value_stride;
            for (var i = 0u; i < in_block; i++) {
                let v = value4(at);
                for (var j = 0u; j < owned; j++) {
                    sums[j] += scores[min(first_row + j * row_step, ROWS - 1u) * BLOCK + i] * v;
                }
                at = next_value(work, min(block + i + 1u, key_end - 1u), at, value_start);
            }
        }
        workgroupBarrier();
    }

    if column >= HEAD4 {
        return;
    }
    for (var j = 0u; j < owned; j++) {
        let r = first_row + j * row_step;
        let row = row0 + r;
        if r < ROWS && row < row_count {
            let at = output_offset(work, row, kv_head, groups.y);
            if SPLIT == 1u {
                output[at + column] = sums[j];
                if column == 0u {
                    output[at + HEAD4] = vec4(row_maximum[r], row_sum[r], 0.0, 0.0);
                }
            } else {
                output[at + column] = sums[j] / row_sum[r];
            }
        }
    }
}
