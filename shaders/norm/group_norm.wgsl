// Last of three steps of group normalisation: y = factor x + offset, followed by SiLU where `silu` is 1.
// x, y [images, pixels, channels], factors [images, 2, channels].
// Dispatch: (ceil(channels4 / 32), ceil(pixels / 128), images); an invocation computes four channels of 16 pixels.
struct Params {
    pixels: u32,
    channels4: u32,
    silu: u32,
}

const PIXELS: u32 = 16u;
// Pixels that are loaded at a time.
const BATCH: u32 = 4u;

@group(0) @binding(0) var<storage, read> input: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> factors: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> output: array<vec4<f32>>;
@group(0) @binding(3) var<uniform> params: Params;

@compute @workgroup_size(256)
fn group_norm(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let c = group.x * 32u + (local & 31u);
    let channels4 = params.channels4;
    if c >= channels4 {
        return;
    }
    let silu = params.silu == 1u;
    let factor = factors[2u * group.z * channels4 + c];
    let offset = factors[(2u * group.z + 1u) * channels4 + c];
    let end = (group.z + 1u) * params.pixels * channels4;
    var at = (group.z * params.pixels + group.y * 8u * PIXELS + (local >> 5u)) * channels4 + c;
    for (var i = 0u; i < PIXELS; i += BATCH) {
        // Loads without branches, so that all of them are on their way at once.
        var y = array<vec4<f32>, BATCH>();
        for (var j = 0u; j < BATCH; j++) {
            y[j] = fma(factor, input[min(at + j * 8u * channels4, end - 1u)], offset);
        }
        if silu {
            for (var j = 0u; j < BATCH; j++) {
                y[j] = y[j] / (vec4(1.0) + exp(-y[j]));
            }
        }
        for (var j = 0u; j < BATCH; j++) {
            if at < end {
                output[at] = y[j];
            }
            at += 8u * channels4;
        }
    }
}
