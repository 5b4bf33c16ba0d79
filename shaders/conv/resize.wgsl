// Bilinear resampling, channels last, corners not aligned, no antialiasing (torch.nn.functional.interpolate):
//     source = max(0, (target + 0.5) * in / out - 0.5), the second neighbour clamped to the edge.
// x [height_in, width_in, channels], y [height_out, width_out, channels].
// Dispatch: one invocation per element, 64 per workgroup, folded over x and y.
struct Params {
    height_in: u32,
    width_in: u32,
    height_out: u32,
    width_out: u32,
    channels: u32,
}

@group(0) @binding(0) var<storage, read> input: array<f32>;
@group(0) @binding(1) var<storage, read_write> output: array<f32>;
@group(0) @binding(2) var<uniform> params: Params;

@compute @workgroup_size(64)
fn resize(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
          @builtin(local_invocation_index) local: u32) {
    let i = (group.x + group.y * groups.x) * 64u + local;
    if i >= params.height_out * params.width_out * params.channels {
        return;
    }
    let c = i % params.channels;
    let target_x = f32((i / params.channels) % params.width_out);
    let target_y = f32(i / (params.channels * params.width_out));
    let source = max(vec2(0.0), (vec2(target_x, target_y) + 0.5)
        * vec2(f32(params.width_in), f32(params.height_in)) / vec2(f32(params.width_out), f32(params.height_out)) - 0.5);
    let low = min(vec2<u32>(source), vec2(params.width_in, params.height_in) - 1u);
    let high = min(low + 1u, vec2(params.width_in, params.height_in) - 1u);
    let weight = source - vec2<f32>(low);
    let top = mix(input[(low.y * params.width_in + low.x) * params.channels + c],
                  input[(low.y * params.width_in + high.x) * params.channels + c], weight.x);
    let bottom = mix(input[(high.y * params.width_in + low.x) * params.channels + c],
                     input[(high.y * params.width_in + high.x) * params.channels + c], weight.x);
    output[i] = mix(top, bottom, weight.y);
}
