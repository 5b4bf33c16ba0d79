// Normalisation of rows, in f32:
//     RMS:   y = x / sqrt(mean(x^2) + eps) * w          (w + 1 where UNIT_OFFSET)
//     layer: y = (x - mean(x)) / sqrt(var(x) + eps) * w + b
// x, y [rows, k]; w, b [k]. Dispatch: one workgroup per row (folded over x and y).
struct Params {
    rows: u32,
    k: u32,
    eps: f32,
}

override CENTRED: u32 = 0;     // layer norm
override UNIT_OFFSET: u32 = 0; // Gemma stores w - 1
override ADD: u32 = 0;         // y is added to what is there

@group(0) @binding(0) var<storage, read> input: array<f32>;
@group(0) @binding(1) var<storage, read> weight: array<f32>;
@group(0) @binding(2) var<storage, read> bias: array<f32>;
@group(0) @binding(3) var<storage, read_write> output: array<f32>;
@group(0) @binding(4) var<uniform> params: Params;

fn norm_row(row: u32, local: u32) {
    let start = row * params.k;
    var mean = 0.0;
    if CENTRED == 1u {
        var sum = 0.0;
        for (var i = local; i < params.k; i += WORKGROUP) {
            sum += input[start + i];
        }
        mean = workgroup_sum(sum, local) / f32(params.k);
    }
    var squares = 0.0;
    for (var i = local; i < params.k; i += WORKGROUP) {
        let d = input[start + i] - mean;
        squares += d * d;
    }
    let scale = inverseSqrt(workgroup_sum(squares, local) / f32(params.k) + params.eps);
    for (var i = local; i < params.k; i += WORKGROUP) {
        var y = (input[start + i] - mean) * scale * (weight[i] + f32(UNIT_OFFSET));
        if CENTRED == 1u {
            y += bias[i];
        }
        if ADD == 1u {
            y += output[start + i];
        }
        output[start + i] = y;
    }
}

@compute @workgroup_size(WORKGROUP)
fn norm(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let row = group.x + group.y * groups.x;
    // The same for the whole workgroup, so the barriers inside stay uniform.
    if row < params.rows {
        norm_row(row, local);
    }
}
