// Code shared by the attention kernels: y = softmax(scale q k^T + causal mask) v.
//
// Query rows that share a key/value head are numbered r = time * group + (head in the group), so that one workgroup
// serves all query heads of a key/value head (MHA, GQA and MQA alike), in both prefill and decode. A workgroup takes
// ROWS of them and loops over keys. If the keys are split (flash decoding), it takes one split and writes its weighted
// sum, maximum and denominator for attention_combine.
//
// `Work` is what a workgroup computes. Where its queries, keys and values are is decided by attention_contiguous.wgsl
// (one sequence, rows at regular distances) or attention_paged.wgsl (several sequences, rows by block tables).
//
// Strides and offsets are in units of vec4; head dimensions are multiples of 4, at most 256.
override CAUSAL: u32 = 0;
override SPLIT: u32 = 0;       // write partial results

const LOWEST: f32 = -3.0e38;

@group(0) @binding(0) var<storage, read> queries: array<vec4<f32>>;
// SPLIT 0: [query_len, heads, HEAD4]. SPLIT 1: for each (split, row, kv head) HEAD4 vec4s of sums and one of (maximum,
// denominator, 0, 0).
@group(0) @binding(3) var<storage, read_write> output: array<vec4<f32>>;

// Offset of a query row.
fn query_offset(work: Work, row: u32, kv_head: u32) -> u32 {
    let head = kv_head * params.group + row % params.group;
    return query_start(work) + (row / params.group) * params.query_stride + head * HEAD4;
}

// The keys of a split that the rows up to `last_row` attend to, as the half-open range [x, y).
fn key_range(work: Work, last_row: u32) -> vec2<u32> {
    let begin = work.split * params.split_keys;
    var end = min(begin + params.split_keys, keys_of(work));
    if CAUSAL == 1u {
        end = min(end, first_position(work) + last_row / params.group + 1u);
    }
    return vec2(begin, end);
}

fn attends(work: Work, row: u32, key: u32, end: u32) -> bool {
    return key < end && (CAUSAL == 0u || key <= first_position(work) + row / params.group);
}

// Offset of a query row's output.
fn output_offset(work: Work, row: u32, kv_head: u32, kv_heads: u32) -> u32 {
    if SPLIT == 1u {
        return partial_start(work) + (partial_row(work, row) * kv_heads + kv_head) * (HEAD4 + 1u);
    }
    let head = kv_head * params.group + row % params.group;
    return output_start(work) + ((row / params.group) * kv_heads * params.group + head) * HEAD4;
}

// Writes a vec4 of a row's output; `total` is the row's maximum and denominator.
fn store_output(work: Work, row: u32, kv_head: u32, kv_heads: u32, column: u32, sum: vec4<f32>, total: vec2<f32>) {
    let at = output_offset(work, row, kv_head, kv_heads);
    if SPLIT == 0u {
        output[at + column] = sum / total.y;
        return;
    }
    output[at + column] = sum;
    if column == 0u {
        output[at + HEAD4] = vec4(total, 0.0, 0.0);
    }
}
