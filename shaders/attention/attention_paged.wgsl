// Several sequences a dispatch. Keys and values are in blocks of 16 rows of a cache; each sequence has a table of its
// blocks. Split s is the keys [256 s, 256 (s + 1)) of a sequence, whatever else is in the dispatch.
// Dispatch: (sequences * blocks, kv_heads, splits).
struct Params {
    query_len: u32,    // query positions of all sequences
    blocks: u32,       // workgroups for the query rows of the sequence that has most
    group: u32,        // query heads per key/value head
    query_stride: u32,
    key_stride: u32,
    key_start: u32,
    value_stride: u32,
    value_start: u32,
    split_keys: u32,   // keys per split, a multiple of 64
    scale: f32,
    head_chunks: u32,  // loads of a head: a loop bound that compilers do not unroll
    output_stride: u32,
    cap: f32,
    window: u32,
}

// For each sequence (first query position, query positions, keys, offset of its table); for each query position the
// number of its splits; the tables.
@group(0) @binding(4) var<storage, read> tables: array<u32>;
@group(0) @binding(5) var<uniform> params: Params;

struct Work {
    block: u32,           // of the sequence's query rows
    split: u32,           // of its keys
    first_query: u32,
    query_rows: u32,
    keys: u32,
    table: u32,
}

fn work_of(group: vec3<u32>) -> Work {
    let at = group.x / params.blocks * 4u;
    return Work(group.x % params.blocks, group.z, tables[at], tables[at + 1u] * params.group, tables[at + 2u],
                tables[at + 3u]);
}

// Whether a workgroup is past the rows or the keys of its sequence.
fn is_idle(work: Work, range: vec2<u32>) -> bool {
    return work.block * ROWS >= work.query_rows || range.x >= range.y;
}

fn query_rows(work: Work) -> u32 {
    return work.query_rows;
}

fn query_start(work: Work) -> u32 {
    return work.first_query * params.query_stride;
}

// The queries are the last positions of the sequence.
fn first_position(work: Work) -> u32 {
    return work.keys - work.query_rows / params.group;
}

fn keys_of(work: Work) -> u32 {
    return work.keys;
}

fn output_start(work: Work) -> u32 {
    return work.first_query * params.output_stride;
}

fn partial_start(work: Work) -> u32 {
    return 0u;
}

// The number of a row among those of all splits.
fn partial_row(work: Work, row: u32) -> u32 {
    return (work.split * params.query_len + work.first_query) * params.group + row;
}

// Where the keys and values of a position are, in rows.
fn stored_row(work: Work, key: u32) -> u32 {
    return tables[work.table + (key >> 4u)] * 16u + (key & 15u);
}

// The same for four positions from a multiple of four on; the last key stands for those after it.
fn stored_rows(work: Work, key: u32, last_key: u32) -> vec4<u32> {
    return stored_rows_from(work, min(key, last_key), last_key);
}

// The same if the first of them is not after the last key.
fn stored_rows_from(work: Work, key: u32, last_key: u32) -> vec4<u32> {
    return vec4(stored_row(work, key)) + min(vec4(0u, 1u, 2u, 3u), vec4(last_key - key));
}

// For a loop over values in fours: the offset of key's value, after that of the key before it.
fn next_value(work: Work, key: u32, before: u32, start: u32) -> u32 {
    return start + stored_row(work, key) * params.value_stride;
}

// The offset that the values of four keys, the first of which is at `first`, do not exceed. `end` is the last key's,
// which is `rest` keys after the first.
fn last_value(end: u32, first: u32, rest: u32) -> u32 {
    return first + min(rest, 3u) * params.value_stride;
}
