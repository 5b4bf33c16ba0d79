// First of three steps of group normalisation: each channel's mean and sum of squared distances from it, over blocks of
// rows of a map's rectangle.
// x [images, height, width, channels] -> sums [images, row_blocks, (1 + 2 channels4)] vec4s: (pixels, 0, 0, 0), means,
// squared distances. Distances are summed relative to the block's first pixel, so that a large mean costs no digits.
// Dispatch: (ceil(channels4 / 32), ceil(row_blocks / 8), images); an invocation computes four channels of a block of
// rows.
struct Params {
    width: u32,
    pixels: u32,          // of an image
    channels4: u32,
    top: u32,             // of the rectangle
    left: u32,
    rows: u32,
    columns: u32,
    block_rows: u32,
    row_blocks: u32,       // of this map
    first_row_block: u32,   // the first of them among all of the image's
    all_row_blocks: u32,
}

@group(0) @binding(0) var<storage, read> input: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> sums: array<vec4<f32>>;
@group(0) @binding(2) var<uniform> params: Params;

@compute @workgroup_size(256)
fn group_norm_sums(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let c = group.x * 32u + (local & 31u);
    let row_block = group.y * 8u + (local >> 5u);
    let channels4 = params.channels4;
    let columns = params.columns;
    if c >= channels4 || row_block >= params.row_blocks {
        return;
    }
    let first_row = row_block * params.block_rows;
    let end_row = min(first_row + params.block_rows, params.rows);
    let image = group.z * params.pixels;
    let start = image + (params.top + first_row) * params.width + params.left;
    let origin = input[start * channels4 + c];
    var sum = vec4(0.0);
    var squares = vec4(0.0);
    for (var row = first_row; row < end_row; row++) {
        var at = (image + (params.top + row) * params.width + params.left) * channels4 + c;
        var column = 0u;
        // Four loads at a time, so that all of them are on their way at once.
        for (; column + 4u <= columns; column += 4u) {
            let a = input[at] - origin;
            let b = input[at + channels4] - origin;
            let c = input[at + 2u * channels4] - origin;
            let d = input[at + 3u * channels4] - origin;
            sum += (a + b) + (c + d);
            squares = fma(d, d, fma(c, c, fma(b, b, fma(a, a, squares))));
            at += 4u * channels4;
        }
        for (; column < columns; column++) {
            let d = input[at] - origin;
            sum += d;
            squares = fma(d, d, squares);
            at += channels4;
        }
    }
    let count = f32((end_row - first_row) * columns);
    let mean = sum / count;
    let to = (group.z * params.all_row_blocks + params.first_row_block + row_block) * (1u + 2u * channels4);
    if c == 0u {
        sums[to] = vec4(count, 0.0, 0.0, 0.0);
    }
    sums[to + 1u + c] = origin + mean;
    sums[to + 1u + channels4 + c] = max(squares - sum * mean, vec4(0.0));
}
