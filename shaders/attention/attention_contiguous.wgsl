// One sequence a dispatch, whose queries, keys and values are rows at regular distances.
// Dispatch: (ceil(query_len * group / ROWS), kv_heads, splits).
struct Params {
    query_len: u32,    // query positions
    keys: u32,         // key positions
    group: u32,        // query heads per key/value head
    first_position: u32,   // causal: query t attends to keys 0 ..= first_position + t
    query_stride: u32,
    query_start: u32,
    key_stride: u32,
    key_start: u32,
    value_stride: u32,
    value_start: u32,
    split_keys: u32,    // keys per split, a multiple of 64
    scale: f32,
    output_start: u32,
    head_chunks: u32,   // loads of a head: a loop bound that compilers do not unroll
    cap: f32,
    window: u32,
}

@group(0) @binding(4) var<uniform> params: Params;

struct Work {
    block: u32,     // of query rows
    split: u32,     // of keys
}

fn work_of(group: vec3<u32>) -> Work {
    return Work(group.x, group.z);
}

// Whether a workgroup has nothing to compute. A split without keys is combined with the others.
fn is_idle(work: Work, range: vec2<u32>) -> bool {
    return false;
}

// Total number of query rows.
fn query_rows(work: Work) -> u32 {
    return params.query_len * params.group;
}

fn query_start(work: Work) -> u32 {
    return params.query_start;
}

fn first_position(work: Work) -> u32 {
    return params.first_position;
}

fn keys_of(work: Work) -> u32 {
    return params.keys;
}

fn output_start(work: Work) -> u32 {
    return params.output_start;
}

fn partial_start(work: Work) -> u32 {
    return params.output_start;
}

// The number of a row among those of all splits.
fn partial_row(work: Work, row: u32) -> u32 {
    return work.split * query_rows(work) + row;
}

// Where the keys and values of a position are, in rows.
fn stored_row(work: Work, key: u32) -> u32 {
    return key;
}

// The same for four positions from a multiple of four on; the last key stands for those after it.
fn stored_rows(work: Work, key: u32, last_key: u32) -> vec4<u32> {
    return min(vec4(key) + vec4(0u, 1u, 2u, 3u), vec4(last_key));
}

// The same if the first of them is not after the last key.
fn stored_rows_from(work: Work, key: u32, last_key: u32) -> vec4<u32> {
    return vec4(key, min(vec3(key) + vec3(1u, 2u, 3u), vec3(last_key)));
}

// For a loop over values in fours: the offset of key's value, after that of the key before it.
fn next_value(work: Work, key: u32, before: u32, start: u32) -> u32 {
    return before + params.value_stride;
}

// The offset that the values of four keys, the first of which is at `first`, do not exceed. `end` is the last key's,
// which is `rest` keys after the first.
fn last_value(end: u32, first: u32, rest: u32) -> u32 {
    return end;
}
