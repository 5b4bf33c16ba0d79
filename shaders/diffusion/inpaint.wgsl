// Keeps an image where a mask is 0, at the noise level of the next step, and fills the model's next input:
//     kept  = of_known * known + of_noise * noise
//     x'    = mask * x + (1 - mask) * kept
//     input = input_scale * x'
// known, noise [pixels, channels]; mask [pixels]; x [pixels, channels], replaced by x'; input [copies, pixels, channels],
// all equal. count = pixels * channels.
// Dispatch: one invocation per element, 64 per workgroup, folded over x and y.
struct Params {
    count: u32,
    channels: u32,
    copies: u32,
    of_known: f32,
    of_noise: f32,
    input_scale: f32,
}

@group(0) @binding(0) var<storage, read> known: array<f32>;
@group(0) @binding(1) var<storage, read> noise: array<f32>;
@group(0) @binding(2) var<storage, read> mask: array<f32>;
@group(0) @binding(3) var<storage, read_write> x: array<f32>;
@group(0) @binding(4) var<storage, read_write> input: array<f32>;
@group(0) @binding(5) var<uniform> params: Params;

@compute @workgroup_size(64)
fn inpaint(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
           @builtin(local_invocation_index) local: u32) {
    let i = (group.x + group.y * groups.x) * 64u + local;
    if i >= params.count {
        return;
    }
    let kept = params.of_known * known[i] + params.of_noise * noise[i];
    let fresh = mask[i / params.channels];
    let next = fresh * x[i] + (1.0 - fresh) * kept;
    x[i] = next;
    for (var copy = 0u; copy < params.copies; copy++) {
        input[copy * params.count + i] = params.input_scale * next;
    }
}
