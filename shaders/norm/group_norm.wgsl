// Last of three steps of group normalisation: y = factor x + offset, followed by SiLU where `silu` is 1.
// x, y [images, pixels, channels], factors [images, 2, channels].
// Dispatch: (ceil(channels4 / 32), ceil(pixels / 128), images); an invocation computes four channels of 16 pixels.
struct Params {
    pixels: u32,
    channels4: u32,
    silu: u32,
}

const PIXELS: u32 = 16u;

@group(0) @binding(0) var<storage, read> input: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> factors: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> output: array<vec4<f32>>;
@group(0) @binding(3) var<uniform> params: Params;

@compute @workgroup_size(256)
fn group_norm(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let c = group.x * 32u + (local & 31u);
    if c >= params.channels4 {
        return;
    }
    let factor = factors[2u * group.z * params.channels4 + c];
    let offset = factors[(2u * group.z + 1u) * params.channels4 + c];
    let first = group.y * 8u * PIXELS + (local >> 5u);
    for (var i = 0u; i < PIXELS; i++) {
        let pixel = first + 8u * i;
        if pixel < params.pixels {
            let at = (group.z * params.pixels + pixel) * params.channels4 + c;
            var y = fma(factor, input[at], offset);
            if params.silu == 1u {
                y = y / (vec4(1.0) + exp(-y));
            }
            output[at] = y;
        }
    }
}
