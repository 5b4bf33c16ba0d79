// Patches of an image or feature map as rows, so that a convolution whose stride is its size is a matrix product:
//     y[oy * width_out + ox][(c * size + ky) * size + kx] = x[c, oy * size + ky, ox * size + kx]
// x is addressed by strides: channels may be first or last. Rows are in the order of torch's flattened weights.
// Dispatch: one invocation per element, 64 per workgroup, folded over x and y.
struct Params {
    rows: u32,
    width_out: u32,
    channels: u32,
    size: u32,
    stride_channel: u32,
    stride_row: u32,
    stride_column: u32,
    first_row: u32, // patch that row 0 of y holds
}

@group(0) @binding(0) var<storage, read> input: array<f32>;
@group(0) @binding(1) var<storage, read_write> output: array<f32>;
@group(0) @binding(2) var<uniform> params: Params;

@compute @workgroup_size(64)
fn patches(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
           @builtin(local_invocation_index) local: u32) {
    let length = params.channels * params.size * params.size;
    let i = (group.x + group.y * groups.x) * 64u + local;
    if i >= params.rows * length {
        return;
    }
    let patch_index = params.first_row + i / length;
    let element = i % length;
    let kx = element % params.size;
    let ky = (element / params.size) % params.size;
    let c = element / (params.size * params.size);
    let y = (patch_index / params.width_out) * params.size + ky;
    let x = (patch_index % params.width_out) * params.size + kx;
    output[i] = input[c * params.stride_channel + y * params.stride_row + x * params.stride_column];
}
