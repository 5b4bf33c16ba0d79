// The epilogue of a matrix product: what happens to a sum before it is stored.
//     v = sum (+ bias);  v = activation(v), or activation(gate) * up;  v = gamma * v;  v += residual;  y = v or y += v.
struct Params {
    m: u32,             // rows of the input
    n: u32,             // rows of this shard of the weight
    k: u32,             // columns
    weight_stride: u32, // length of a weight row in fours
    first: u32,         // this shard's first row in the whole weight
    output_stride: u32, // length of an output row
    output_start: u32,  // where output row 0 starts
    route_base: u32,    // start of this expert's list in `routes`
    route_divisor: u32,
    eps: f32,           // of the norm before the product
    // Of a convolution (lhs_im2col.wgsl, rows_im2col.wgsl):
    height: u32,        // of the map
    width: u32,
    pixels_per_image: u32,    // of an image of the result
    width_out: u32,
    channels4: u32,     // of the map, in fours
    inverse_channels4: f32,
    taps: u32,          // 1 or 9
    stride: u32,
    padding: u32,        // above and on the left
    upsample_shift: u32,     // 1: the map is upsampled by 2 x 2
    height_limit: u32,   // of the map after upsampling
    width_limit: u32,
    first_row: u32,     // pixel that row 0 is
    bias_stride: u32,   // length of an image's own bias; 0: one bias for all
}

// Override constants, not uniforms: software adapters execute both sides of every branch.
override HAS_BIAS: bool = false;
override HAS_GAMMA: bool = false;
override GATED: bool = false; // weight rows alternate gate, up
override ACCUMULATE: bool = false;
override HAS_RESIDUAL: bool = false;
override ACTIVATION: u32 = 0;

@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read> gamma: array<f32>;
@group(0) @binding(7) var<storage, read_write> output: array<f32>;
@group(0) @binding(8) var<uniform> params: Params;

fn store(row: u32, column: u32, value: f32) {
    var v = value;
    if HAS_GAMMA {
        v *= gamma[column];
    }
    let at = params.output_start + row * params.output_stride + column;
    if HAS_RESIDUAL {
        v += residual_at(at);
    }
    if ACCUMULATE {
        v += output[at];
    }
    output[at] = v;
}

// Sums of four neighbouring weight rows, the first a multiple of 4. `m` is a row before the row map (rows_*.wgsl).
fn store_sums4(m: u32, n: u32, sums: vec4<f32>) {
    let row = output_row(m);
    let column = params.first + n;
    var v = sums;
    if HAS_BIAS {
        let start = bias_start(m) + params.first;
        let i = min(vec4(n) + vec4(0u, 1u, 2u, 3u), vec4(params.n - 1u));
        v += vec4(bias[start + i.x], bias[start + i.y], bias[start + i.z], bias[start + i.w]);
    }
    if GATED {
        if n + 1u < params.n {
            store(row, column >> 1u, activate(v.x, ACTIVATION) * v.y);
        }
        if n + 3u < params.n {
            store(row, (column >> 1u) + 1u, activate(v.z, ACTIVATION) * v.w);
        }
        return;
    }
    for (var i = 0u; i < 4u; i++) {
        if n + i < params.n {
            store(row, column + i, activate(v[i], ACTIVATION));
        }
    }
}
