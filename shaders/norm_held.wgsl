// Normalisation of rows, in f32 (see norm.wgsl), whose length is a multiple of four: a row is read once, and its invocations
// hold HELD vec4s of it each. x, y [rows, k]; w, b [k]. Dispatch: a workgroup a row (folded over x and y).
struct Params {
    rows: u32,
    k: u32,
    eps: f32,
}

override CENTRED: u32 = 0;     // layer norm
override UNIT_OFFSET: u32 = 0; // Gemma stores w - 1

@group(0) @binding(0) var<storage, read> input: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> output: array<vec4<f32>>;
@group(0) @binding(4) var<uniform> params: Params;

fn sum_of(v: vec4<f32>) -> f32 {
    return (v.x + v.y) + (v.z + v.w);
}

@compute @workgroup_size(WORKGROUP)
fn norm_held(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
             @builtin(local_invocation_index) local: u32) {
    let row = group.x + group.y * groups.x;
    // The same for the whole workgroup, so the barriers below stay uniform.
    if row >= params.rows {
        return;
    }
    let fours = params.k >> 2u;
    let start = row * fours;
    var held: array<vec4<f32>, HELD>;
    var sum = vec4(0.0);
    for (var i = 0u; i < HELD; i++) {
        let at = local + i * WORKGROUP;
        held[i] = select(vec4(0.0), input[start + min(at, fours - 1u)], at < fours);
        sum += held[i];
    }
    if CENTRED == 1u {
        let mean = vec4(sum_of(workgroup_sum4(sum, local)) / f32(params.k));
        for (var i = 0u; i < HELD; i++) {
            held[i] = select(vec4(0.0), held[i] - mean, local + i * WORKGROUP < fours);
        }
    }
    var squares = vec4(0.0);
    for (var i = 0u; i < HELD; i++) {
        squares += held[i] * held[i];
    }
    let scale = inverseSqrt(sum_of(workgroup_sum4(squares, local)) / f32(params.k) + params.eps);
    for (var i = 0u; i < HELD; i++) {
        let at = local + i * WORKGROUP;
        if at < fours {
            var y = held[i] * scale * (weight[at] + f32(UNIT_OFFSET));
            if CENTRED == 1u {
                y += bias[at];
            }
            output[start + at] = y;
        }
    }
}
