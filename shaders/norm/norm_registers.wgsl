// Normalisation of rows, in f32 (see norm.wgsl), whose length is a multiple of four. A row is read once; each
// invocation keeps VECS vec4s of it in registers. x, y [rows, k]; w, b [k]. Dispatch: one workgroup per row
// (folded over x and y).
struct Params {
    rows: u32,
    k: u32,
    eps: f32,
}

override CENTRED: u32 = 0;     // layer norm
override UNIT_OFFSET: u32 = 0; // Gemma stores w - 1
override ADD: u32 = 0;         // y is added to what is there

@group(0) @binding(0) var<storage, read> input: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> output: array<vec4<f32>>;
@group(0) @binding(4) var<uniform> params: Params;

fn sum_of(v: vec4<f32>) -> f32 {
    return (v.x + v.y) + (v.z + v.w);
}

@compute @workgroup_size(WORKGROUP)
fn norm_registers(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
             @builtin(local_invocation_index) local: u32) {
    let row = group.x + group.y * groups.x;
    // The same for the whole workgroup, so the barriers below stay uniform.
    if row >= params.rows {
        return;
    }
    let fours = params.k >> 2u;
    let start = row * fours;
    var row_values: array<vec4<f32>, VECS>;
    var sum = vec4(0.0);
    for (var i = 0u; i < VECS; i++) {
        let at = local + i * WORKGROUP;
        row_values[i] = select(vec4(0.0), input[start + min(at, fours - 1u)], at < fours);
        sum += row_values[i];
    }
    if CENTRED == 1u {
        let mean = vec4(workgroup_sum(sum_of(sum), local) / f32(params.k));
        for (var i = 0u; i < VECS; i++) {
            row_values[i] = select(vec4(0.0), row_values[i] - mean, local + i * WORKGROUP < fours);
        }
    }
    var squares = vec4(0.0);
    for (var i = 0u; i < VECS; i++) {
        squares += row_values[i] * row_values[i];
    }
    let scale = inverseSqrt(workgroup_sum(sum_of(squares), local) / f32(params.k) + params.eps);
    for (var i = 0u; i < VECS; i++) {
        let at = local + i * WORKGROUP;
        if at < fours {
            var y = row_values[i] * scale * (weight[at] + f32(UNIT_OFFSET));
            if CENTRED == 1u {
                y += bias[at];
            }
            if ADD == 1u {
                y += output[start + at];
            }
            output[start + at] = y;
        }
    }
}
