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

// The sum over a stage's channels of a cell's values less `mean`, or of their squares. A cell is a weighted sum of
// 3 x 3 texels. The stage is a constant in each call, so that the loop has no branch for it.
fn stage_sum(stage: u32, cell: vec2<u32>, mean: f32, squares: bool, local: u32) -> f32 {
    let map = params.stages[stage];
    let rows = taps(cell.x, map.ratio, map.size.x);
    let columns = taps(cell.y, map.ratio, map.size.y);
    let row_starts = min(rows.low + vec3(0u, 1u, 2u), vec3(map.size.x - 1u)) * (map.size.y * map.channels);
    let column_starts = min(columns.low + vec3(0u, 1u, 2u), vec3(map.size.y - 1u)) * map.channels;
    var sum = 0.0;
    for (var c = local; c < map.channels; c += WORKGROUP) {
        var value = Channels(-mean);
        for (var y = 0u; y < 3u; y++) {
            let at = column_starts + (row_starts[y] + c);
            let w = rows.weight[y] * columns.weight;
            value = fma(Channels(w.x), texel(stage, at.x), value);
            value = fma(Channels(w.y), texel(stage, at.y), value);
            value = fma(Channels(w.z), texel(stage, at.z), value);
        }
        sum += select(sum_channels(value), dot_channels(value, value), squares);
    }
    return sum;
}

fn map_sum(cell: vec2<u32>, mean: f32, squares: bool, local: u32) -> f32 {
    let sum = stage_sum(0u, cell, mean, squares, local) + stage_sum(1u, cell, mean, squares, local)
        + stage_sum(2u, cell, mean, squares, local) + stage_sum(3u, cell, mean, squares, local);
    return workgroup_sum(sum, local) / f32(CHANNELS_PER_INVOCATION * params.channels);
}

@compute @workgroup_size(WORKGROUP)
fn mining_stats_pooled(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                @builtin(local_invocation_index) local: u32) {
    let index = group.x + group.y * groups.x;
    // The same for the whole workgroup.
    if index >= params.height * params.width {
        return;
    }
    let cell = vec2(index / params.width, index % params.width);
    let mean = map_sum(cell, 0.0, false, local);
    let variance = map_sum(cell, mean, true, local);
    if local == 0u {
        stats[index] = vec2(mean, inverseSqrt(variance + params.eps));
    }
}
