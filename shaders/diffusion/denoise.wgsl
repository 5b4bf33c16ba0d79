// A step of a sampler over latents, guidance included, for every scheduler:
//     o        = guided ? negative + guidance_scale * (positive - negative) : output
//     denoised = clamp(denoised_sample * x + denoised_output * o, -limit, limit)
//     x'       = sample * x + of_output * o + of_denoised * denoised + of_previous * previous + of_noise * noise
//     input    = input_scale * x', the model's next input
// output [1 + guided, count], negative before positive; noise [count] (any tensor of that length where of_noise is 0);
// x [count], replaced by x'; previous [count], replaced by denoised; input [copies, count], all equal.
// Dispatch: one invocation per element, 64 per workgroup, folded over x and y.
struct Params {
    count: u32,
    guided: u32,
    copies: u32,
    guidance_scale: f32,
    denoised_sample: f32,
    denoised_output: f32,
    limit: f32,
    sample: f32,
    of_output: f32,
    of_denoised: f32,
    of_previous: f32,
    of_noise: f32,
    input_scale: f32,
}

@group(0) @binding(0) var<storage, read> output: array<f32>;
@group(0) @binding(1) var<storage, read> noise: array<f32>;
@group(0) @binding(2) var<storage, read_write> x: array<f32>;
@group(0) @binding(3) var<storage, read_write> previous: array<f32>;
@group(0) @binding(4) var<storage, read_write> input: array<f32>;
@group(0) @binding(5) var<uniform> params: Params;

@compute @workgroup_size(64)
fn denoise(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
           @builtin(local_invocation_index) local: u32) {
    let i = (group.x + group.y * groups.x) * 64u + local;
    if i >= params.count {
        return;
    }
    var o = output[i];
    if params.guided != 0u {
        o += params.guidance_scale * (output[params.count + i] - o);
    }
    let before = x[i];
    let seen = params.denoised_sample * before + params.denoised_output * o;
    let denoised = clamp(seen, -params.limit, params.limit);
    var next = params.sample * before + params.of_output * o + params.of_denoised * denoised;
    // Uninitialised values are not read: pooled memory may hold anything.
    if params.of_previous != 0.0 {
        next += params.of_previous * previous[i];
    }
    if params.of_noise != 0.0 {
        next += params.of_noise * noise[i];
    }
    x[i] = next;
    previous[i] = denoised;
    for (var copy = 0u; copy < params.copies; copy++) {
        input[copy * params.count + i] = params.input_scale * next;
    }
}
