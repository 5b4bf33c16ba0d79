// Mean and 1 / standard deviation over the channels of every cell of a pooled map, for the layer norms before keys and
// values (which differ in gain and bias only). Two passes over the cell, so that no digits cancel. (Unpooled maps:
// mining_products and mining_stats_bilinear, which read less.)
//     stats [cells] of (mean, 1 / sqrt(variance + eps)), cells row-major.
// Dispatch: one workgroup per cell, folded over x and y.
struct Params {
    stages: array<Stage, 4>,
    height: u32, // cells, pooled
    width: u32,
    channels: u32,
    eps: f32,
}

@group(0) @binding(4) var<storage, read_write> stats: array<vec2<f32>>;
@group(0) @binding(5) var<uniform> params: Params;

// A stage's texels under a cell along one axis: where they are and their weights. Two for each of two unpooled cells.
struct Taps {
    at: vec4<u32>,
    weight: vec4<f32>,
}

fn taps(i: u32, ratio: u32, size: u32) -> Taps {
    let a = tap(2u * i, ratio);
    let b = tap(2u * i + 1u, ratio);
    return Taps(min(vec4(a.low, a.low + 1u, b.low, b.low + 1u), vec4(size - 1u)),
                0.5 * vec4(1.0 - a.weight, a.weight, 1.0 - b.weight, b.weight));
}

// The weighted sum of 4 x 4 texels. The stage is chosen once for all of them: compilers do not move a branch out of a
// loop. rows: indices of the rows' first texels; columns: of the texels in a row.
fn cell_value(stage: u32, rows: vec4<u32>, columns: vec4<u32>, weights_y: vec4<f32>, weights_x: vec4<f32>) -> Channels {
    var sum = Channels();
    switch stage {
        case 0u: {
            for (var i = 0u; i < 4u; i++) {
                let at = columns + rows[i];
                let w = weights_y[i] * weights_x;
                sum = fma(Channels(w.x), stage0[at.x], sum);
                sum = fma(Channels(w.y), stage0[at.y], sum);
                sum = fma(Channels(w.z), stage0[at.z], sum);
                sum = fma(Channels(w.w), stage0[at.w], sum);
            }
        }
        case 1u: {
            for (var i = 0u; i < 4u; i++) {
                let at = columns + rows[i];
                let w = weights_y[i] * weights_x;
                sum = fma(Channels(w.x), stage1[at.x], sum);
                sum = fma(Channels(w.y), stage1[at.y], sum);
                sum = fma(Channels(w.z), stage1[at.z], sum);
                sum = fma(Channels(w.w), stage1[at.w], sum);
            }
        }
        case 2u: {
            for (var i = 0u; i < 4u; i++) {
                let at = columns + rows[i];
                let w = weights_y[i] * weights_x;
                sum = fma(Channels(w.x), stage2[at.x], sum);
                sum = fma(Channels(w.y), stage2[at.y], sum);
                sum = fma(Channels(w.z), stage2[at.z], sum);
                sum = fma(Channels(w.w), stage2[at.w], sum);
            }
        }
        default: {
            for (var i = 0u; i < 4u; i++) {
                let at = columns + rows[i];
                let w = weights_y[i] * weights_x;
                sum = fma(Channels(w.x), stage3[at.x], sum);
                sum = fma(Channels(w.y), stage3[at.y], sum);
                sum = fma(Channels(w.z), stage3[at.z], sum);
                sum = fma(Channels(w.w), stage3[at.w], sum);
            }
        }
    }
    return sum;
}

@compute @workgroup_size(WORKGROUP)
fn mining_stats_pooled(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                @builtin(local_invocation_index) local: u32) {
    let cell = group.x + group.y * groups.x;
    // The same for the whole workgroup.
    if cell >= params.height * params.width {
        return;
    }
    let y = cell / params.width;
    let x = cell % params.width;
    var mean = 0.0;
    var squares = 0.0;
    for (var pass_index = 0u; pass_index < 2u; pass_index++) {
        var sum = 0.0;
        for (var stage = 0u; stage < 4u; stage++) {
            let map = params.stages[stage];
            let rows = taps(y, map.ratio, map.size.x);
            let columns = taps(x, map.ratio, map.size.y);
            let row_starts = rows.at * (map.size.y * map.channels);
            let column_starts = columns.at * map.channels;
            for (var c = local; c < map.channels; c += WORKGROUP) {
                let value = cell_value(stage, row_starts, column_starts + c, rows.weight, columns.weight);
                let d = value - mean;
                sum += select(sum_channels(d), dot_channels(d, d), pass_index == 1u);
            }
        }
        let total = workgroup_sum4(vec4(sum, 0.0, 0.0, 0.0), local).x / f32(CHANNELS_PER_INVOCATION * params.channels);
        if pass_index == 0u {
            mean = total;
        } else {
            squares = total;
        }
    }
    if local == 0u {
        stats[cell] = vec2(mean, inverseSqrt(squares + params.eps));
    }
}
