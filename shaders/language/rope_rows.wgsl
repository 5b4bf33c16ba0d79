// Norms of queries and keys, and RoPE, for a product of queries, keys and values that rope_epilogue.wgsl cannot follow:
// one with a bias, or with norms.
//     qkv [m, (heads + 2 kv_heads) d] -> queries [m, heads d]; keys, values [cache row of m][kv_heads d]
// Heads of queries and keys have the elements that are rotated together next to each other, as in rope_epilogue.wgsl.
// NORM: 1 RMS, 2 layer norm without offset; over a head, or WHOLE: over all queries and over all keys of a row.
// gain [(heads + kv_heads) d]. angles: a line of ANGLES floats for each position, or PLACED for each row: d of (cos, sin);
// QUERY_FACTOR: 4 with the factor of queries first; PLACED: 4 with the row of the cache first.
// Dispatch: (heads + 2 kv_heads, m), or WHOLE: (3, m).
struct Params {
    head_dim: u32,
    query_width: u32,    // heads d
    kv_width: u32,       // kv_heads d
    line: u32,           // floats of a line of angles
    first_position: u32,
    eps: f32,
}

override NORM: u32 = 0;
override WHOLE: u32 = 0;
override QUERY_FACTOR: u32 = 0;
override PLACED: u32 = 0;

@group(0) @binding(0) var<storage, read> qkv: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> gain: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> angles: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> queries: array<vec4<f32>>;
// Bindings 4 and 5, keys and values: store_cache_f32.wgsl or store_cache_f16.wgsl.
@group(0) @binding(6) var<uniform> params: Params;

@compute @workgroup_size(WORKGROUP)
fn rope_rows(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let m = group.y;
    let rotated_width = params.query_width + params.kv_width;
    var begin = group.x * params.head_dim;
    var end = begin + params.head_dim;
    if WHOLE == 1u {
        begin = select(select(rotated_width, params.query_width, group.x == 1u), 0u, group.x == 0u);
        end = select(select(rotated_width + params.kv_width, rotated_width, group.x == 1u), params.query_width,
                     group.x == 0u);
    }
    let start = (m * (rotated_width + params.kv_width)) >> 2u;
    let first = (begin >> 2u) + local;
    let stop = end >> 2u;
    var mean = 0.0;
    var scale = 1.0;
    if NORM > 0u {
        let count = f32(end - begin);
        if NORM == 2u {
            var sum = 0.0;
            for (var i = first; i < stop; i += WORKGROUP) {
                sum += dot(qkv[start + i], vec4(1.0));
            }
            mean = workgroup_sum(sum, local) / count;
        }
        var squares = 0.0;
        for (var i = first; i < stop; i += WORKGROUP) {
            let x = qkv[start + i] - mean;
            squares += dot(x, x);
        }
        scale = inverseSqrt(workgroup_sum(squares, local) / count + params.eps);
    }
    let line = (select(params.first_position + m, m, PLACED == 1u) * params.line) >> 2u;
    var time = params.first_position + m;
    if PLACED == 1u {
        time = u32(angles[line + (params.line >> 2u) - 1u].x);
    }
    for (var i = first; i < stop; i += WORKGROUP) {
        let column = 4u * i;
        var x = qkv[start + i];
        if column >= rotated_width {
            store_value4((time * params.kv_width + column - rotated_width) >> 2u, x);
            continue;
        }
        if NORM > 0u {
            x = (x - mean) * scale * gain[i];
        }
        let angle = angles[line + ((column % params.head_dim) >> 2u)]; // cos, sin, cos, sin
        var rotated = x * angle.xxzz + vec4(-x.y, x.x, -x.w, x.z) * angle.yyww;
        if column < params.query_width {
            if QUERY_FACTOR == 1u {
                rotated *= angles[line + (params.head_dim >> 2u)].x;
            }
            queries[(m * params.query_width + column) >> 2u] = rotated;
        } else {
            store_key4((time * params.kv_width + column - params.query_width) >> 2u, rotated);
        }
    }
}
