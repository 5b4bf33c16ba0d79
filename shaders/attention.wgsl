// Attention with online softmax: y = softmax(scale q k^T + causal mask) v.
//
// Query rows that share a key/value head are numbered r = time * group + (head in the group), so that one workgroup serves
// all query heads of a key/value head (MHA, GQA and MQA alike), in prefill as in decoding. A workgroup takes ROWS of them and
// runs over keys in blocks of 64; where the keys are split (decoding), it takes one part of them and leaves its sums,
// maximum and denominator to attention_merge.
//
// Row strides and starts are in vec4s; head dimensions are multiples of 4, at most 256.
// Dispatch: (ceil(times * group / ROWS), kv_heads, parts).
struct Params {
    times: u32,        // query positions
    keys: u32,         // key positions
    group: u32,        // query heads for each key/value head
    first_time: u32,   // causal: query t sees keys 0 ..= first_time + t
    query_stride: u32,
    query_start: u32,
    key_stride: u32,
    key_start: u32,
    value_stride: u32,
    value_start: u32,
    part_keys: u32,    // keys in a part, a multiple of 64
    scale: f32,
}

override HEAD4: u32 = 16;      // head dimension in vec4s
override COLUMNS: u32 = 16;    // HEAD4 rounded up to a power of two, at most 64
override ROWS: u32 = 16;       // query rows of a workgroup: 1, 2, 4, 8 or 16
override CAUSAL: u32 = 0;
override SPLIT: u32 = 0;       // write partial results

const BLOCK: u32 = 64u;
const LOWEST: f32 = -3.0e38;

@group(0) @binding(0) var<storage, read> queries: array<vec4<f32>>;
// SPLIT 0: [times, heads, HEAD4]. SPLIT 1: for each (part, row, kv head) HEAD4 vec4s of sums and one of (maximum,
// denominator, 0, 0).
@group(0) @binding(3) var<storage, read_write> output: array<vec4<f32>>;
@group(0) @binding(4) var<uniform> params: Params;

var<workgroup> scores: array<f32, 16 * BLOCK>;
var<workgroup> quarter: array<f32, BLOCK>;
var<workgroup> row_maximum: array<f32, 16>;
var<workgroup> row_sum: array<f32, 16>;
var<workgroup> row_factor: array<f32, 16>;

@compute @workgroup_size(64)
fn attention(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
             @builtin(local_invocation_index) local: u32) {
    let kv_head = group.y;
    let row0 = group.x * ROWS;
    let row_count = params.times * params.group;
    let key_begin = group.z * params.part_keys;
    var key_end = min(key_begin + params.part_keys, params.keys);
    if CAUSAL == 1u {
        let last_row = min(row0 + ROWS, row_count) - 1u;
        key_end = min(key_end, params.first_time + last_row / params.group + 1u);
    }
    if local < 16u {
        row_maximum[local] = LOWEST;
        row_sum[local] = 0.0;
    }
    // In the second half an invocation owns a column of the head dimension and every STRIDE-th row.
    let column = local % COLUMNS;
    let first_row = local / COLUMNS;
    let row_step = BLOCK / COLUMNS;
    let owned = (ROWS + row_step - 1u) / row_step;
    var sums: array<vec4<f32>, 16>;

    for (var block = key_begin; block < key_end; block += BLOCK) {
        // Scores: an invocation takes one key against all rows.
        let key = block + local;
        let key_at = params.key_start + min(key, key_end - 1u) * params.key_stride + kv_head * HEAD4;
        var dots: array<f32, 16>;
        for (var c = 0u; c < HEAD4; c++) {
            let k = key4(key_at + c);
            for (var r = 0u; r < ROWS; r++) {
                let row = min(row0 + r, row_count - 1u);
                let head = kv_head * params.group + row % params.group;
                let at = params.query_start + (row / params.group) * params.query_stride + head * HEAD4 + c;
                dots[r] += dot(queries[at], k);
            }
        }
        for (var r = 0u; r < ROWS; r++) {
            let time = min(row0 + r, row_count - 1u) / params.group;
            let seen = key < key_end && (CAUSAL == 0u || key <= params.first_time + time);
            scores[r * BLOCK + local] = select(LOWEST, dots[r] * params.scale, seen);
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
            var at = params.value_start + block * params.value_stride + kv_head * HEAD4 + column;
            for (var i = 0u; i < in_block; i++) {
                let v = value4(at);
                for (var j = 0u; j < owned; j++) {
                    sums[j] += scores[min(first_row + j * row_step, ROWS - 1u) * BLOCK + i] * v;
                }
                at += params.value_stride;
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
            if SPLIT == 1u {
                let at = ((group.z * row_count + row) * groups.y + kv_head) * (HEAD4 + 1u);
                output[at + column] = sums[j];
                if column == 0u {
                    output[at + HEAD4] = vec4(row_maximum[r], row_sum[r], 0.0, 0.0);
                }
            } else {
                let head = kv_head * params.group + row % params.group;
                let at = ((row / params.group) * groups.y * params.group + head) * HEAD4 + column;
                output[at] = sums[j] / row_sum[r];
            }
        }
    }
}
