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

// 1: the width is a multiple of eight, so that all outputs of an invocation are inside the map.
override WHOLE: u32 = 0;

@group(0) @binding(0) var<storage, read> input: array<Channels>;
@group(0) @binding(1) var<storage, read> weight: array<Channels>;
@group(0) @binding(2) var<storage, read> bias: array<Channels>;
@group(0) @binding(3) var<storage, read_write> output: array<Channels>;
@group(0) @binding(4) var<uniform> params: Params;

// The input at index `at`, or zero where it is outside of the row.
fn pixel(at: u32, inside: bool) -> Channels {
    return select(Channels(), input[select(0u, at, inside)], inside);
}

// Whether a column from x0 on is inside the map.
fn within(column: u32) -> bool {
    return WHOLE == 1u || column < params.width;
}

fn put(start: u32, column: u32, c: u32, value: Channels) {
    if within(column) {
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
    // Indices left of the map wrap around; `left`, `right0` … say which of the pixels exist.
    let left = x0 > 0u;
    let right0 = x0 + 8u < params.width;
    let right1 = select(x0 + 9u < params.width, right0, WHOLE == 1u);
    let right2 = select(x0 + 10u < params.width, right0, WHOLE == 1u);
    let channels = params.channels;
    var at = ((y - 3u) * params.width + x0 - 3u) * channels + c;
    var tap = c;
    for (var ky = 0u; ky < 7u; ky++) {
        if y + ky - 3u < params.height {
            let p0 = pixel(at, left);
            let p1 = pixel(at + channels, left);
            let p2 = pixel(at + 2u * channels, left);
            let p3 = input[at + 3u * channels];
            let p4 = pixel(at + 4u * channels, within(x0 + 1u));
            let p5 = pixel(at + 5u * channels, within(x0 + 2u));
            let p6 = pixel(at + 6u * channels, within(x0 + 3u));
            let p7 = pixel(at + 7u * channels, within(x0 + 4u));
            let p8 = pixel(at + 8u * channels, within(x0 + 5u));
            let p9 = pixel(at + 9u * channels, within(x0 + 6u));
            let pa = pixel(at + 10u * channels, within(x0 + 7u));
            let pb = pixel(at + 11u * channels, right0);
            let pc = pixel(at + 12u * channels, right1);
            let pd = pixel(at + 13u * channels, right2);
            let w0 = weight[tap];
            let w1 = weight[tap + channels];
            let w2 = weight[tap + 2u * channels];
            let w3 = weight[tap + 3u * channels];
            let w4 = weight[tap + 4u * channels];
            let w5 = weight[tap + 5u * channels];
            let w6 = weight[tap + 6u * channels];
            s0 = fma(w6, p6, fma(w5, p5, fma(w4, p4, fma(w3, p3, fma(w2, p2, fma(w1, p1, fma(w0, p0, s0)))))));
            s1 = fma(w6, p7, fma(w5, p6, fma(w4, p5, fma(w3, p4, fma(w2, p3, fma(w1, p2, fma(w0, p1, s1)))))));
            s2 = fma(w6, p8, fma(w5, p7, fma(w4, p6, fma(w3, p5, fma(w2, p4, fma(w1, p3, fma(w0, p2, s2)))))));
            s3 = fma(w6, p9, fma(w5, p8, fma(w4, p7, fma(w3, p6, fma(w2, p5, fma(w1, p4, fma(w0, p3, s3)))))));
            s4 = fma(w6, pa, fma(w5, p9, fma(w4, p8, fma(w3, p7, fma(w2, p6, fma(w1, p5, fma(w0, p4, s4)))))));
            s5 = fma(w6, pb, fma(w5, pa, fma(w4, p9, fma(w3, p8, fma(w2, p7, fma(w1, p6, fma(w0, p5, s5)))))));
            s6 = fma(w6, pc, fma(w5, pb, fma(w4, pa, fma(w3, p9, fma(w2, p8, fma(w1, p7, fma(w0, p6, s6)))))));
            s7 = fma(w6, pd, fma(w5, pc, fma(w4, pb, fma(w3, pa, fma(w2, p9, fma(w1, p8, fma(w0, p7, s7)))))));
        }
        at += params.width * channels;
        tap += 7u * channels;
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
