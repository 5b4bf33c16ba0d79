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

// A stage's texels under a cell along one axis: where they are and what they weigh. Two for each pooled cell.
struct Taps {
    at: array<u32, 4>,
    weight: array<f32, 4>,
}

fn taps(i: u32, ratio: u32, size: u32) -> Taps {
    var result: Taps;
    for (var j = 0u; j < POOL; j++) {
        let t = tap(i * POOL + j, ratio);
        result.at[2u * j] = t.low;
        result.at[2u * j + 1u] = min(t.low + 1u, size - 1u);
        result.weight[2u * j] = (1.0 - t.weight) / f32(POOL);
        result.weight[2u * j + 1u] = t.weight / f32(POOL);
    }
    return result;
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
            for (var c = local; c < map.channels; c += WORKGROUP) {
                var value = Channels();
                for (var i = 0u; i < 2u * POOL; i++) {
                    for (var j = 0u; j < 2u * POOL; j++) {
                        let at = (rows.at[i] * map.size.y + columns.at[j]) * map.channels + c;
                        value += rows.weight[i] * columns.weight[j] * texel(stage, at);
                    }
                }
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
