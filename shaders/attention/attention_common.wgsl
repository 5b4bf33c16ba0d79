// Code shared by the attention kernels: y = softmax(scale q k^T + causal mask) v. attention, attention_decode and
// attention_tiled also have CAPPED scores, cap tanh(scale q k^T / cap), and WINDOWED ones, of the last `window` keys.
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
override CAPPED: u32 = 0;
override WINDOWED: u32 = 0;

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

// The range without the keys, by 64, before the window of `first_row`; a block is left in any case. Its scores have no
// weight next to those of other splits.
fn window_range(work: Work, first_row: u32, range: vec2<u32>) -> vec2<u32> {
    if WINDOWED == 0u {
        return range;
    }
    let seen = first_position(work) + first_row / params.group + 1u;
    let begin = min(max(seen, params.window) - params.window, range.y - 1u) / 64u * 64u;
    return vec2(max(range.x, begin), range.y);
}

// Whether keys are in the window of a query at `position`.
fn in_window(position: u32, keys: vec4<u32>) -> vec4<bool> {
    if WINDOWED == 0u {
        return vec4(true);
    }
    return keys + vec4(params.window) > vec4(position);
}

fn attends(work: Work, row: u32, key: u32, end: u32) -> bool {
    let position = first_position(work) + row / params.group;
    return key < end && (CAUSAL == 0u || key <= position) && in_window(position, vec4(key)).x;
}

// Scores after the cap. (tanh is 1 in f32 from 10 on; some drivers overflow for large arguments.)
fn capped(scores: vec4<f32>) -> vec4<f32> {
    if CAPPED == 0u {
        return scores;
    }
    return params.cap * tanh(clamp(scores / params.cap, vec4(-15.0), vec4(15.0)));
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
