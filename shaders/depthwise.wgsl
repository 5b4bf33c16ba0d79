// Depthwise 7 x 7 convolution, padding 3, with bias; channels last.
//     y[y, x, c] = b[c] + sum over ky, kx of x[y + ky - 3, x + kx - 3, c] w[ky * 7 + kx, c]
// x, y [height, width, channels]; w [49, channels].
// Dispatch: an invocation for four neighbouring columns of one channel, 64 a workgroup, folded over x and y.
struct Params {
    height: u32,
    width: u32,
    channels: u32,
}

@group(0) @binding(0) var<storage, read> input: array<f32>;
@group(0) @binding(1) var<storage, read> weight: array<f32>;
@group(0) @binding(2) var<storage, read> bias: array<f32>;
@group(0) @binding(3) var<storage, read_write> output: array<f32>;
@group(0) @binding(4) var<uniform> params: Params;

@compute @workgroup_size(64)
fn depthwise(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
             @builtin(local_invocation_index) local: u32) {
    let columns = (params.width + 3u) / 4u;
    let i = (group.x + group.y * groups.x) * 64u + local;
    if i >= params.height * columns * params.channels {
        return;
    }
    let c = i % params.channels;
    let x0 = 4u * ((i / params.channels) % columns);
    let y = i / (params.channels * columns);
    var sums = vec4(bias[c]);
    for (var ky = 0u; ky < 7u; ky++) {
        let row = y + ky;
        if row >= 3u && row < params.height + 3u {
            let start = (row - 3u) * params.width;
            // The ten inputs that the four outputs of this row share.
            var xs: array<f32, 10>;
            for (var j = 0u; j < 10u; j++) {
                let column = x0 + j;
                let inside = column >= 3u && column < params.width + 3u;
                let at = (start + select(0u, column - 3u, inside)) * params.channels + c;
                xs[j] = select(0.0, input[at], inside);
            }
            for (var kx = 0u; kx < 7u; kx++) {
                let w = weight[(ky * 7u + kx) * params.channels + c];
                sums += w * vec4(xs[kx], xs[kx + 1u], xs[kx + 2u], xs[kx + 3u]);
            }
        }
    }
    for (var j = 0u; j < min(4u, params.width - x0); j++) {
        output[(y * params.width + x0 + j) * params.channels + c] = sums[j];
    }
}
