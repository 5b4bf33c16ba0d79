// Second of three steps of group normalisation: from the means and squared distances of the row blocks
// (group_norm_sums.wgsl) to a factor and an offset for each channel, so that y = factor x + offset:
//     factor = w / sqrt(var + eps),  offset = b - mean factor.
// Means are merged as by Chan et al. (1979): var = sum(squares + count (mean - total mean)^2) / sum(count).
// sums as written there, w, b [channels] -> factors [images, 2, channels].
// Dispatch: (groups, images).
struct Params {
    channels: u32,
    group_channels: u32,
    row_blocks: u32,
    eps: f32,
}

@group(0) @binding(0) var<storage, read> sums: array<f32>;
@group(0) @binding(1) var<storage, read> weight: array<f32>;
@group(0) @binding(2) var<storage, read> bias: array<f32>;
@group(0) @binding(3) var<storage, read_write> factors: array<f32>;
@group(0) @binding(4) var<uniform> params: Params;

// Invocations for neighbouring channels; the others take other row blocks.
const LANES: u32 = 8u;

@compute @workgroup_size(WORKGROUP)
fn group_norm_factors(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let channels = params.channels;
    let length = 4u + 2u * channels;
    let begin = group.x * params.group_channels;
    let end = begin + params.group_channels;
    let first_channel = begin + local % LANES;
    let first = group.y * params.row_blocks;
    let first_block = first + local / LANES;
    var totals = vec4(0.0); // values, and the sum of them
    for (var row_block = first_block; row_block < first + params.row_blocks; row_block += WORKGROUP / LANES) {
        let at = row_block * length;
        let count = sums[at];
        for (var c = first_channel; c < end; c += LANES) {
            totals += vec4(1.0, sums[at + 4u + c], 0.0, 0.0) * count;
        }
    }
    totals = workgroup_sum4(totals, local);
    let mean = totals.y / totals.x;
    var squares = 0.0;
    for (var row_block = first_block; row_block < first + params.row_blocks; row_block += WORKGROUP / LANES) {
        let at = row_block * length;
        let count = sums[at];
        for (var c = first_channel; c < end; c += LANES) {
            let d = sums[at + 4u + c] - mean;
            squares += sums[at + 4u + channels + c] + count * d * d;
        }
    }
    let scale = inverseSqrt(workgroup_sum(squares, local) / totals.x + params.eps);
    for (var c = begin + local; c < end; c += WORKGROUP) {
        let factor = weight[c] * scale;
        factors[group.y * 2u * channels + c] = factor;
        factors[group.y * 2u * channels + channels + c] = bias[c] - mean * factor;
    }
}
