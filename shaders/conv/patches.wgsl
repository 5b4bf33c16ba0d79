// Patches of an image or feature map as rows, so that a convolution whose stride is its size is a matrix product:
//     y[oy * width_out + ox][(c * size + ky) * size + kx] = x[c, oy * size + ky, ox * size + kx]
// x is addressed by strides: channels may be first or last. Rows are in the order of torch's flattened weights.
// Dispatch: (ceil(length / 64), ceil(rows / 16) folded over y and z), length = channels * size * size; an invocation
// copies one element of 16 patches, and divides once for all of them.
const PATCHES: u32 = 16u;

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
    let size = params.size;
    let element = group.x * 64u + local;
    let length = params.channels * size * size;
    if element >= length {
        return;
    }
    let kx = element % size;
    let ky = (element / size) % size;
    let offset = element / (size * size) * params.stride_channel + ky * params.stride_row + kx * params.stride_column;
    let first = (group.y + group.z * groups.y) * PATCHES;
    let end = min(first + PATCHES, params.rows);
    var y = (params.first_row + first) / params.width_out;
    var x = (params.first_row + first) % params.width_out;
    for (var row = first; row < end; row++) {
        output[row * length + element] =
            input[offset + y * size * params.stride_row + x * size * params.stride_column];
        x++;
        if x == params.width_out {
            x = 0u;
            y++;
        }
    }
}
