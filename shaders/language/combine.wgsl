// Weighted sum of the outputs of the selected experts, in the order of the experts' numbers, added to the residual:
//     y[t] += sum over choices of weights[t, choice] * answers[t * TOP_K + choice]
// Dispatch: one invocation per element of y, 64 per workgroup, folded over x and y.
struct Params {
    tokens: u32,
    width: u32,
}

override TOP_K: u32 = 2;

@group(0) @binding(0) var<storage, read> answers: array<f32>;
@group(0) @binding(1) var<storage, read> weights: array<f32>;
@group(0) @binding(2) var<storage, read> experts_chosen: array<u32>;
@group(0) @binding(3) var<storage, read_write> output: array<f32>;
@group(0) @binding(4) var<uniform> params: Params;

@compute @workgroup_size(64)
fn combine(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
           @builtin(local_invocation_index) local: u32) {
    let i = (group.x + group.y * groups.x) * 64u + local;
    if i >= params.tokens * params.width {
        return;
    }
    let token = i / params.width;
    var sum = 0.0;
    var done = 0u; // experts up to this number (exclusive) are in the sum
    for (var step = 0u; step < TOP_K; step++) {
        var next = 0xffffffffu;
        var slot = 0u;
        for (var choice = 0u; choice < TOP_K; choice++) {
            let e = experts_chosen[token * TOP_K + choice];
            if e >= done && e < next {
                next = e;
                slot = token * TOP_K + choice;
            }
        }
        sum += weights[slot] * answers[slot * params.width + i % params.width];
        done = next + 1u;
    }
    output[i] += sum;
}
