// softmax.wgsl for rows of whole vec4s. A row is read twice instead of three times and written once: each invocation
// rescales its sum whenever its maximum rises. x [rows, stride4], in vec4s. Dispatch: one workgroup per row (folded
// over x and y).
struct Params {
    rows: u32,
    k4: u32,
    stride4: u32,
    scale: f32,
}

const WORKGROUP: u32 = 256u;

@group(0) @binding(0) var<storage, read_write> x: array<vec4<f32>>;
@group(0) @binding(1) var<uniform> params: Params;

// The largest value and the sum of exp(scale (value - largest)).
var<workgroup> scratch: array<vec2<f32>, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn softmax_vec4(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                @builtin(local_invocation_index) local: u32) {
    let row = group.x + group.y * groups.x;
    // The same for the whole workgroup.
    if row >= params.rows {
        return;
    }
    let k4 = params.k4;
    let scale = params.scale;
    let start = row * params.stride4;
    var largest = -3.0e38;
    var sum = 0.0;
    for (var i = local; i < k4; i += WORKGROUP) {
        let v = x[start + i];
        let now = max(largest, max(max(v.x, v.y), max(v.z, v.w)));
        sum = fma(sum, exp(scale * (largest - now)), dot(exp(scale * (v - now)), vec4(1.0)));
        largest = now;
    }
    scratch[local] = vec2(largest, sum);
    workgroupBarrier();
    for (var step = WORKGROUP / 2u; step > 0u; step >>= 1u) {
        if local < step {
            let a = scratch[local];
            let b = scratch[local + step];
            let now = max(a.x, b.x);
            scratch[local] = vec2(now, a.y * exp(scale * (a.x - now)) + b.y * exp(scale * (b.x - now)));
        }
        workgroupBarrier();
    }
    largest = scratch[0].x;
    let factor = 1.0 / scratch[0].y;
    for (var i = local; i < k4; i += WORKGROUP) {
        x[start + i] = factor * exp(scale * (x[start + i] - largest));
    }
    for (var i = k4 + local; i < params.stride4; i += WORKGROUP) {
        x[start + i] = vec4(0.0);
    }
}
