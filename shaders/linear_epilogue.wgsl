// What happens to a matrix product's sum before it is stored:
//     v = sum (+ bias);  v = activation(v), or activation(gate) * up;  v = gamma * v;  y = v or y += v.
struct Params {
    m: u32,             // rows of the input
    n: u32,             // rows of this piece of the weight
    k: u32,             // columns
    weight_stride: u32, // length of a weight row in fours
    first: u32,         // this piece's first row in the whole weight
    output_stride: u32, // length of an output row
    output_start: u32,  // where output row 0 starts
    route_base: u32,    // this expert's place in `routes`
    route_divisor: u32,
}

override HAS_BIAS: u32 = 0;
override HAS_GAMMA: u32 = 0;
override ACTIVATION: u32 = 0;
override GATED: u32 = 0;      // weight rows alternate gate, up
override ACCUMULATE: u32 = 0;

@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read> gamma: array<f32>;
@group(0) @binding(6) var<storage, read_write> output: array<f32>;
@group(0) @binding(7) var<uniform> params: Params;

fn store(row: u32, column: u32, value: f32) {
    var v = value;
    if HAS_GAMMA == 1u {
        v *= gamma[column];
    }
    let at = params.output_start + row * params.output_stride + column;
    if ACCUMULATE == 1u {
        v += output[at];
    }
    output[at] = v;
}

// Sums of four neighbouring weight rows, the first a multiple of 4. `m` is a row of the map above.
fn finish4(m: u32, n: u32, sums: vec4<f32>) {
    let row = output_row(m);
    if GATED == 1u {
        let column = (params.first + n) >> 1u;
        if n + 1u < params.n {
            store(row, column, activate(sums.x, ACTIVATION) * sums.y);
        }
        if n + 3u < params.n {
            store(row, column + 1u, activate(sums.z, ACTIVATION) * sums.w);
        }
        return;
    }
    for (var i = 0u; i < 4u; i++) {
        if n + i < params.n {
            let column = params.first + n + i;
            var v = sums[i];
            if HAS_BIAS == 1u {
                v += bias[column];
            }
            store(row, column, activate(v, ACTIVATION));
        }
    }
}
