// Depthwise 7 x 7 convolution, padding 3, with bias; channels last.
//     y[y, x, c] = b[c] + sum over ky, kx of x[y + ky - 3, x + kx - 3, c] w[ky * 7 + kx, c]
// x, y [height, width, channels]; w [49, channels]; channels as `channels_*` says.
// For eight outputs of a row an invocation reads 14 inputs and 7 weights per row of the window, and multiplies them 56
// times. Dispatch: one invocation per eight neighbouring columns, 64 per workgroup, folded over x and y.
struct Params {
    height: u32,
    width: u32,
    channels: u32, // Channels in a pixel
}

@group(0) @binding(0) var<storage, read> input: array<Channels>;
@group(0) @binding(1) var<storage, read> weight: array<Channels>;
@group(0) @binding(2) var<storage, read> bias: array<Channels>;
@group(0) @binding(3) var<storage, read_write> output: array<Channels>;
@group(0) @binding(4) var<uniform> params: Params;

// An input of a row that starts at pixel `start`; zero outside of it (before the first column, `column` has wrapped
// around).
fn pixel(start: u32, column: u32, c: u32) -> Channels {
    let inside = column < params.width;
    return select(Channels(), input[(start + select(0u, column, inside)) * params.channels + c], inside);
}

fn put(start: u32, column: u32, c: u32, value: Channels) {
    if column < params.width {
        output[(start + column) * params.channels + c] = value;
    }
}

@compute @workgroup_size(64)
fn depthwise(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
             @builtin(local_invocation_index) local: u32) {
    let columns = (params.width + 7u) / 8u;
    let i = (group.x + group.y * groups.x) * 64u + local;
    if i >= params.height * columns * params.channels {
        return;
    }
    let c = i % params.channels;
    let x0 = 8u * ((i / params.channels) % columns);
    let y = i / (params.channels * columns);
    let b = bias[c];
    var s0 = b;
    var s1 = b;
    var s2 = b;
    var s3 = b;
    var s4 = b;
    var s5 = b;
    var s6 = b;
    var s7 = b;
    for (var ky = 0u; ky < 7u; ky++) {
        let row = y + ky - 3u;
        if row < params.height {
            let start = row * params.width;
            let p0 = pixel(start, x0 - 3u, c);
            let p1 = pixel(start, x0 - 2u, c);
            let p2 = pixel(start, x0 - 1u, c);
            let p3 = pixel(start, x0, c);
            let p4 = pixel(start, x0 + 1u, c);
            let p5 = pixel(start, x0 + 2u, c);
            let p6 = pixel(start, x0 + 3u, c);
            let p7 = pixel(start, x0 + 4u, c);
            let p8 = pixel(start, x0 + 5u, c);
            let p9 = pixel(start, x0 + 6u, c);
            let pa = pixel(start, x0 + 7u, c);
            let pb = pixel(start, x0 + 8u, c);
            let pc = pixel(start, x0 + 9u, c);
            let pd = pixel(start, x0 + 10u, c);
            let at = ky * 7u * params.channels + c;
            let w0 = weight[at];
            let w1 = weight[at + params.channels];
            let w2 = weight[at + 2u * params.channels];
            let w3 = weight[at + 3u * params.channels];
            let w4 = weight[at + 4u * params.channels];
            let w5 = weight[at + 5u * params.channels];
            let w6 = weight[at + 6u * params.channels];
            s0 += w0 * p0 + w1 * p1 + w2 * p2 + w3 * p3 + w4 * p4 + w5 * p5 + w6 * p6;
            s1 += w0 * p1 + w1 * p2 + w2 * p3 + w3 * p4 + w4 * p5 + w5 * p6 + w6 * p7;
            s2 += w0 * p2 + w1 * p3 + w2 * p4 + w3 * p5 + w4 * p6 + w5 * p7 + w6 * p8;
            s3 += w0 * p3 + w1 * p4 + w2 * p5 + w3 * p6 + w4 * p7 + w5 * p8 + w6 * p9;
            s4 += w0 * p4 + w1 * p5 + w2 * p6 + w3 * p7 + w4 * p8 + w5 * p9 + w6 * pa;
            s5 += w0 * p5 + w1 * p6 + w2 * p7 + w3 * p8 + w4 * p9 + w5 * pa + w6 * pb;
            s6 += w0 * p6 + w1 * p7 + w2 * p8 + w3 * p9 + w4 * pa + w5 * pb + w6 * pc;
            s7 += w0 * p7 + w1 * p8 + w2 * p9 + w3 * pa + w4 * pb + w5 * pc + w6 * pd;
        }
    }
    let start = y * params.width;
    put(start, x0, c, s0);
    put(start, x0 + 1u, c, s1);
    put(start, x0 + 2u, c, s2);
    put(start, x0 + 3u, c, s3);
    put(start, x0 + 4u, c, s4);
    put(start, x0 + 5u, c, s5);
    put(start, x0 + 6u, c, s6);
    put(start, x0 + 7u, c, s7);
}
