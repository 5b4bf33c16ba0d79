// Soft cap of logits, in place: x = cap tanh(x / cap). (tanh is 1 in f32 from 10 on; some drivers overflow for large
// arguments.) Dispatch: one invocation per element, 64 per workgroup, folded over x and y.
struct Params {
    count: u32,
    cap: f32,
}

@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@group(0) @binding(1) var<uniform> params: Params;

@compute @workgroup_size(64)
fn softcap(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
           @builtin(local_invocation_index) local: u32) {
    let i = (group.x + group.y * groups.x) * 64u + local;
    if i < params.count {
        x[i] = params.cap * tanh(clamp(x[i] / params.cap, -15.0, 15.0));
    }
}
