// Concatenates the channels of two maps: y[pixel] = (a[pixel], b[pixel]).
// a [pixels, first4], b [pixels, second4], y [pixels, first4 + second4], all in vec4s.
// Dispatch: (ceil((first4 + second4) / 32), ceil(pixels / 128)); an invocation copies four channels of 16 pixels.
struct Params {
    pixels: u32,
    first4: u32,
    second4: u32,
}

const PIXELS: u32 = 16u;

@group(0) @binding(0) var<storage, read> first: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> second: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> output: array<vec4<f32>>;
@group(0) @binding(3) var<uniform> params: Params;

@compute @workgroup_size(256)
fn concatenate(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let c = group.x * 32u + (local & 31u);
    let all = params.first4 + params.second4;
    if c >= all {
        return;
    }
    let start = group.y * 8u * PIXELS + (local >> 5u);
    for (var i = 0u; i < PIXELS; i++) {
        let pixel = start + 8u * i;
        if pixel < params.pixels {
            if c < params.first4 {
                output[pixel * all + c] = first[pixel * params.first4 + c];
            } else {
                output[pixel * all + c] = second[pixel * params.second4 + c - params.first4];
            }
        }
    }
}
