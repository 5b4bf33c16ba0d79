// Softmax of the first `k` values of rows, in place: x = exp(scale (x - max x)) / sum; the values after them become
// zero. x [rows, stride]. Dispatch: one workgroup per row (folded over x and y).
struct Params {
    rows: u32,
    k: u32,
    stride: u32,
    scale: f32,
}

const WORKGROUP: u32 = 256u;

@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@group(0) @binding(1) var<uniform> params: Params;

var<workgroup> scratch: array<f32, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn softmax(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
           @builtin(local_invocation_index) local: u32) {
    let row = group.x + group.y * groups.x;
    // The same for the whole workgroup.
    if row >= params.rows {
        return;
    }
    let start = row * params.stride;
    var largest = -3.0e38;
    for (var i = local; i < params.k; i += WORKGROUP) {
        largest = max(largest, x[start + i]);
    }
    scratch[local] = largest;
    workgroupBarrier();
    for (var step = WORKGROUP / 2u; step > 0u; step >>= 1u) {
        if local < step {
            scratch[local] = max(scratch[local], scratch[local + step]);
        }
        workgroupBarrier();
    }
    largest = scratch[0];
    workgroupBarrier();
    // Each invocation reads back only what it wrote itself.
    var sum = 0.0;
    for (var i = local; i < params.k; i += WORKGROUP) {
        let p = exp(params.scale * (x[start + i] - largest));
        x[start + i] = p;
        sum += p;
    }
    scratch[local] = sum;
    workgroupBarrier();
    for (var step = WORKGROUP / 2u; step > 0u; step >>= 1u) {
        if local < step {
            scratch[local] += scratch[local + step];
        }
        workgroupBarrier();
    }
    let factor = 1.0 / scratch[0];
    for (var i = local; i < params.k; i += WORKGROUP) {
        x[start + i] *= factor;
    }
    for (var i = params.k + local; i < params.stride; i += WORKGROUP) {
        x[start + i] = 0.0;
    }
}
