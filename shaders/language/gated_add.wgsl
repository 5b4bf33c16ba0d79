// A shared expert's result onto the residual, gated by token:
//     y[t] += sigmoid(gates[t]) * x[t]
// x, y [tokens, width]; gates [tokens]. Dispatch: one invocation per element of y, 64 per workgroup, folded over x and y.
struct Params {
    tokens: u32,
    width: u32,
}

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> gates: array<f32>;
@group(0) @binding(2) var<storage, read_write> output: array<f32>;
@group(0) @binding(3) var<uniform> params: Params;

@compute @workgroup_size(64)
fn gated_add(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
             @builtin(local_invocation_index) local: u32) {
    let i = (group.x + group.y * groups.x) * 64u + local;
    if i < params.tokens * params.width {
        output[i] += x[i] / (1.0 + exp(-gates[i / params.width]));
    }
}
