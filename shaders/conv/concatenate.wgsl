// Concatenates the channels of two maps: y[pixel] = (a[pixel], b[pixel]).
// a [pixels, first4], b [pixels, second4], y [pixels, first4 + second4], all in vec4s.
// Dispatch: (ceil((first4 + second4) / 32), ceil(pixels / 128)); an invocation copies four channels of 16 pixels.
struct Params {
    pixels: u32,
    first4: u32,
    second4: u32,
}

const PIXELS: u32 = 16u;
// Pixels that are loaded at a time.
const BATCH: u32 = 4u;

@group(0) @binding(0) var<storage, read> first: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> second: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> output: array<vec4<f32>>;
@group(0) @binding(3) var<uniform> params: Params;

@compute @workgroup_size(256)
fn concatenate(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let c = group.x * 32u + (local & 31u);
    let first4 = params.first4;
    let all = first4 + params.second4;
    if c >= all {
        return;
    }
    let last = params.pixels - 1u;
    var pixel = group.y * 8u * PIXELS + (local >> 5u);
    for (var i = 0u; i < PIXELS; i += BATCH) {
        // Loads without branches for each pixel, so that all of them are on their way at once.
        var values = array<vec4<f32>, BATCH>();
        if c < first4 {
            for (var j = 0u; j < BATCH; j++) {
                values[j] = first[min(pixel + 8u * j, last) * first4 + c];
            }
        } else {
            for (var j = 0u; j < BATCH; j++) {
                values[j] = second[min(pixel + 8u * j, last) * params.second4 + c - first4];
            }
        }
        for (var j = 0u; j < BATCH; j++) {
            if pixel <= last {
                output[pixel * all + c] = values[j];
            }
            pixel += 8u;
        }
    }
}
