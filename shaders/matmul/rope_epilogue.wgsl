// RoPE as the epilogue of the QKV product: queries and keys are rotated by their position; keys and values are written
// to the cache.
//     x W^T [m, (heads + 2 kv_heads) d] -> queries [m, heads d]; keys, values [cache_row(m)][kv_heads d]
// Element i of a head is rotated with element i + d / 2. W's rows for queries and keys are interleaved so that the two
// are neighbours. Queries and keys keep that order, since attention only takes their dot products.
// cos_sin: [..][d / 2] of (cos, sin), those of row m from angles_start(m) on. d is a multiple of 4. rope_positions.wgsl or
// rope_places.wgsl says where a row's angles are, and which row of the cache it gets.
struct Params {
    m: u32,             // rows of the input
    n: u32,             // rows of this shard of the weight
    k: u32,             // columns
    weight_stride: u32, // length of a weight row in fours
    first: u32,         // this shard's first row in the whole weight
    output_stride: u32,
    output_start: u32,
    route_base: u32,
    route_divisor: u32,
    eps: f32,           // of the norm before the product
    head_dim: u32,
    query_width: u32,   // heads d
    kv_width: u32,      // kv_heads d
    first_position: u32,
}

@group(0) @binding(3) var<storage, read> cos_sin: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read_write> output: array<vec4<f32>>;
@group(0) @binding(8) var<uniform> params: Params;

// Sums of four neighbouring weight rows, the first a multiple of 4: of one head, since all rows are a multiple of 4.
fn store_sums4(m: u32, n: u32, sums: vec4<f32>) {
    let column = params.first + n;
    let time = cache_row(m);
    let rotated_width = params.query_width + params.kv_width;
    if column >= rotated_width {
        store_value4((time * params.kv_width + column - rotated_width) >> 2u, sums);
        return;
    }
    let angle = cos_sin[(angles_start(m) + column % params.head_dim) >> 2u]; // cos, sin, cos, sin
    let rotated = sums * angle.xxzz + vec4(-sums.y, sums.x, -sums.w, sums.z) * angle.yyww;
    if column < params.query_width {
        output[(m * params.query_width + column) >> 2u] = rotated;
    } else {
        store_key4((time * params.kv_width + column - params.query_width) >> 2u, rotated);
    }
}
