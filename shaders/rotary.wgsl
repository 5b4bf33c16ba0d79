// Rotary embedding of queries and keys (half-split pairs: element i turns with element i + d / 2), fused with the write of
// keys and values into the cache.
//     qkv [times, (heads + 2 kv_heads) d] -> queries [times, heads d]; keys, values [first_time ..][kv_heads d]
// turns: [position][d / 2] of (cos, sin). d is a multiple of 4.
// Dispatch: an invocation for two neighbouring pairs of a head (d / 4 a head), 64 a workgroup, folded over x and y.
struct Params {
    times: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    first_time: u32,
}

@group(0) @binding(0) var<storage, read> qkv: array<vec2<f32>>;
@group(0) @binding(1) var<storage, read> turns: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> queries: array<vec2<f32>>;
@group(0) @binding(5) var<uniform> params: Params;

@compute @workgroup_size(64)
fn rotary(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
          @builtin(local_invocation_index) local: u32) {
    let quarter = params.head_dim / 4u;
    let all_heads = params.heads + 2u * params.kv_heads;
    let i = (group.x + group.y * groups.x) * 64u + local;
    if i >= params.times * all_heads * quarter {
        return;
    }
    let pair = i % quarter;
    let head = (i / quarter) % all_heads;
    let time = i / (quarter * all_heads);
    let position = params.first_time + time;
    let at = (time * all_heads + head) * 2u * quarter + pair;
    let low = qkv[at];
    let high = qkv[at + quarter];
    let turn = turns[position * quarter + pair]; // cos, sin, cos, sin
    let new_low = low * turn.xz - high * turn.yw;
    let new_high = high * turn.xz + low * turn.yw;
    if head < params.heads {
        let to = (time * params.heads + head) * 2u * quarter + pair;
        queries[to] = new_low;
        queries[to + quarter] = new_high;
    } else if head < params.heads + params.kv_heads {
        let to = (position * params.kv_heads + head - params.heads) * 2u * quarter + pair;
        store_key2(to, new_low);
        store_key2(to + quarter, new_high);
    } else {
        let to = (position * params.kv_heads + head - params.heads - params.kv_heads) * 2u * quarter + pair;
        store_value2(to, low);
        store_value2(to + quarter, high);
    }
}
