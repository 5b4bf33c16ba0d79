// Reader of x for a convolution (implicit GEMM): row `pixel` of the im2col matrix, which is never stored. A row has
// k = taps * channels values, taps in reading order and channels last as in the maps [images, height, width, channels].
// Rows are the pixels of the result: y[pixel] = sum over taps of x[pixel at the tap] W[tap]^T.
//
// Pixels outside the map are zero. `upsample_shift` shifts coordinates right by one: nearest-neighbour upsampling by
// 2 x 2.
@group(0) @binding(0) var<storage, read> input: array<vec4<f32>>;

// Of a row: the first tap's y and x, and the number of its image's first pixel.
alias LhsRow = vec3<i32>;
// Of a column: the tap's y and x, and the four of channels.
alias LhsColumn = vec3<i32>;

struct LhsPair {
    first: vec4<f32>,
    second: vec4<f32>,
}

fn lhs_row_at(row: u32) -> LhsRow {
    let image = row / params.pixels_per_image;
    let pixel = row - image * params.pixels_per_image;
    let y = pixel / params.width_out;
    let x = pixel - y * params.width_out;
    let corner = vec2<i32>(vec2(y, x) * params.stride) - vec2(i32(params.padding));
    return vec3(corner, i32(image * params.height * params.width));
}

// Divisions are by multiplication: k4 is below 2^20, so that the product's error is far below the half that is added.
fn lhs_column_at(k4: u32) -> LhsColumn {
    let tap = u32((f32(k4) + 0.5) * params.inverse_channels4);
    let y = select(0u, (tap * 11u) >> 5u, params.taps > 1u); // tap / 3, for three taps a side
    return vec3<i32>(vec3(y, tap - 3u * y, k4 - tap * params.channels4));
}

fn lhs4(lhs_row: LhsRow, step: LhsColumn) -> vec4<f32> {
    let at = lhs_row.xy + step.xy;
    // Negative coordinates are large when unsigned.
    let inside = all(vec2<u32>(at) < vec2(params.height_limit, params.width_limit));
    let pixel = lhs_row.z + (at.x >> params.upsample_shift) * i32(params.width) + (at.y >> params.upsample_shift);
    let index = select(0, pixel, inside) * i32(params.channels4) + step.z;
    return select(vec4(0.0), input[index], inside);
}

// lhs4 of k4 and of the four after it, where both belong to one tap: channels4 and k4 are even.
fn lhs_pair(lhs_row: LhsRow, k4: u32) -> LhsPair {
    let step = lhs_column_at(k4);
    let at = lhs_row.xy + step.xy;
    let inside = all(vec2<u32>(at) < vec2(params.height_limit, params.width_limit));
    let pixel = lhs_row.z + (at.x >> params.upsample_shift) * i32(params.width) + (at.y >> params.upsample_shift);
    let index = select(0, pixel, inside) * i32(params.channels4) + step.z;
    return LhsPair(select(vec4(0.0), input[index], inside), select(vec4(0.0), input[index + 1], inside));
}

// Convolutions fuse no norm.
fn gain4(k4: u32, k: u32) -> vec4<f32> {
    return vec4(1.0);
}
