// Mean and 1 / standard deviation over the channels of every cell of the map: what the layer norms in front of keys and
// values need (they differ in gain and bias only). Two passes over the cell, so that no digits cancel.
//     stats [cells] of (mean, 1 / sqrt(variance + eps)), cells row-major.
// Dispatch: a workgroup a cell, folded over x and y.
struct Params {
    stages: array<Stage, 4>,
    height: u32, // cells, pooled
    width: u32,
    channels: u32,
    eps: f32,
}

@group(0) @binding(4) var<storage, read_write> stats: array<vec2<f32>>;
@group(0) @binding(5) var<uniform> params: Params;

fn cell_value(stage: u32, y: u32, x: u32, c: u32) -> f32 {
    let map = params.stages[stage];
    var value = 0.0;
    for (var j = 0u; j < POOL * POOL; j++) {
        let ty = tap(y * POOL + j / POOL, map.ratio);
        let tx = tap(x * POOL + j % POOL, map.ratio);
        let high_y = min(ty.low + 1u, map.size.x - 1u);
        let high_x = min(tx.low + 1u, map.size.y - 1u);
        let top = mix(texel(stage, (ty.low * map.size.y + tx.low) * map.channels + c),
                      texel(stage, (ty.low * map.size.y + high_x) * map.channels + c), tx.weight);
        let bottom = mix(texel(stage, (high_y * map.size.y + tx.low) * map.channels + c),
                         texel(stage, (high_y * map.size.y + high_x) * map.channels + c), tx.weight);
        value += mix(top, bottom, ty.weight);
    }
    return value / f32(POOL * POOL);
}

@compute @workgroup_size(WORKGROUP)
fn mining_stats(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
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
            for (var c = local; c < params.stages[stage].channels; c += WORKGROUP) {
                let d = cell_value(stage, y, x, c) - mean;
                sum += select(d, d * d, pass_index == 1u);
            }
        }
        let total = workgroup_sum4(vec4(sum, 0.0, 0.0, 0.0), local).x / f32(params.channels);
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
