// Patch info mining, fused: every low-resolution token attends to the WINDOW x WINDOW cells of the high-resolution map
// at its place. Key and value projections are folded into the query and into the step after pooling, so that the map is
// only read (spec of the model, 4.2; the layer norm's gain is folded into u and the value matrix):
//     score[m] = u . (f[m] - mean[m]) / std[m]          u = gain_k * W_k^T q / sqrt(d)
//     p = softmax(score);  y = sum over m of p[m] (f[m] - mean[m]) / std[m]
// A cell is a weighted sum of texels of the four stages; its weights are products of one for each axis. Both sums are
// linear in the cells, so they run over texels, of which there are fewer: u . texel first, then weights.
//     u [tokens, channels], stats [cells], y [tokens, channels].
// store_weight(cell, p) and the binding of the parameters are in mining_without_weights.wgsl, or in
// mining_with_weights.wgsl where p is an output too.
// Dispatch: one workgroup per token (folded over x and y). Needs (WINDOW * POOL)^2 <= 256 texels of the first stage.
struct Params {
    stages: array<Stage, 4>,
    tokens: u32,
    tokens_wide: u32, // tokens in a row of the tile
    width: u32,       // cells in a row of the (pooled) map
    channels: u32,
    first_row: u32,   // the tile's place in the map, in cells
    first_column: u32,
}

override WINDOW: u32 = 8;
// Texels along one side of a window: the first stage has exactly WINDOW * POOL, the others fewer.
override SIDE: u32 = 8;
const LOWEST: f32 = -3.402823e38;

@group(0) @binding(4) var<storage, read> inputs: array<Channels>; // u
@group(0) @binding(5) var<storage, read> stats: array<vec2<f32>>;
@group(0) @binding(6) var<storage, read_write> output: array<Channels>;

// First u . texel, then the weight of the texel in y, for the texels of one stage after the other.
var<workgroup> texels: array<f32, 4 * SIDE * SIDE>;
// Weight of texel t of a stage in cell m along the rows and the columns of the window.
var<workgroup> weights_y: array<f32, 4 * WINDOW * SIDE>;
var<workgroup> weights_x: array<f32, 4 * WINDOW * SIDE>;
var<workgroup> cells: array<f32, WINDOW * WINDOW>;
var<workgroup> lane_sums: array<f32, 256>;

@compute @workgroup_size(256)
fn mining(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
          @builtin(local_invocation_index) local: u32) {
    let token = group.x + group.y * groups.x;
    // The same for the whole workgroup.
    if token >= params.tokens {
        return;
    }
    let row = params.first_row + (token / params.tokens_wide) * WINDOW;
    let column = params.first_column + (token % params.tokens_wide) * WINDOW;
    let u = token * params.channels;

    // Weights along the axes.
    for (var i = local; i < 4u * WINDOW * SIDE; i += 256u) {
        let t = i % SIDE;
        let m = (i / SIDE) % WINDOW;
        let stage = i / (SIDE * WINDOW);
        let map = params.stages[stage];
        let y0 = tap(row * POOL, map.ratio).low;
        let x0 = tap(column * POOL, map.ratio).low;
        weights_y[i] = texel_weight(row + m, y0 + t, map.ratio, map.size.x);
        weights_x[i] = texel_weight(column + m, x0 + t, map.ratio, map.size.y);
    }

    // u . texel: 16 lanes a texel, 16 texels at a time.
    let lane = local & 15u;
    var first_channel = 0u;
    for (var stage = 0u; stage < 4u; stage++) {
        let map = params.stages[stage];
        let y0 = tap(row * POOL, map.ratio).low;
        let x0 = tap(column * POOL, map.ratio).low;
        for (var t0 = 0u; t0 < SIDE * SIDE; t0 += 16u) {
            let t = t0 + (local >> 4u);
            let y = y0 + t / SIDE;
            let x = x0 + t % SIDE;
            var sum = 0.0;
            // Texels beyond the window's own have no weight; beyond the map there are none.
            if t < SIDE * SIDE && y < map.size.x && x < map.size.y && in_window(stage, t / SIDE) && in_window(stage, t % SIDE) {
                let at = (y * map.size.y + x) * map.channels;
                for (var c = lane; c < map.channels; c += 16u) {
                    sum += dot_channels(inputs[u + first_channel + c], texel(stage, at + c));
                }
            }
            lane_sums[local] = sum;
            workgroupBarrier();
            if lane == 0u && t < SIDE * SIDE {
                var total = 0.0;
                for (var i = 0u; i < 16u; i++) {
                    total += lane_sums[local + i];
                }
                texels[stage * SIDE * SIDE + t] = total;
            }
            workgroupBarrier();
        }
        first_channel += map.channels;
    }
    // Sum of u, for the mean's part of the scores.
    var part = 0.0;
    for (var c = local; c < params.channels; c += 256u) {
        part += sum_channels(inputs[u + c]);
    }
    lane_sums[local] = part;
    workgroupBarrier();
    for (var step = 128u; step > 0u; step >>= 1u) {
        if local < step {
            lane_sums[local] += lane_sums[local + step];
        }
        workgroupBarrier();
    }
    let u_sum = lane_sums[0];

    // Scores and softmax: one invocation per cell.
    let count = WINDOW * WINDOW;
    if local < count {
        let my = local / WINDOW;
        let mx = local % WINDOW;
        var value = 0.0;
        for (var stage = 0u; stage < 4u; stage++) {
            for (var ty = 0u; ty < SIDE; ty++) {
                let wy = weights_y[(stage * WINDOW + my) * SIDE + ty];
                if wy != 0.0 {
                    for (var tx = 0u; tx < SIDE; tx++) {
                        value += wy * weights_x[(stage * WINDOW + mx) * SIDE + tx]
                            * texels[(stage * SIDE + ty) * SIDE + tx];
                    }
                }
            }
        }
        let stat = stats[(row + my) * params.width + column + mx];
        var score = (value - stat.x * u_sum) * stat.y;
        // As the reference: NaN counts as 0, infinities as the largest finite numbers. Detected by bits, since
        // compilers may assume that there are none.
        let bits = bitcast<u32>(score) & 0x7fffffffu;
        if bits > 0x7f800000u {
            score = 0.0;
        }
        cells[local] = clamp(score, LOWEST, -LOWEST);
    }
    workgroupBarrier();
    var maximum = LOWEST;
    for (var m = 0u; m < count; m++) {
        maximum = max(maximum, cells[m]);
    }
    workgroupBarrier();
    if local < count {
        cells[local] = exp(cells[local] - maximum);
    }
    workgroupBarrier();
    var total = 0.0;
    for (var m = 0u; m < count; m++) {
        total += cells[m];
    }
    workgroupBarrier();
    // a[m] = p[m] / std[m], and the mean's part of y, which is the same for all channels.
    var mean_part = 0.0;
    if local < count {
        let stat = stats[(row + local / WINDOW) * params.width + column + local % WINDOW];
        let p = cells[local] / total;
        store_weight((row + local / WINDOW) * params.width + column + local % WINDOW, p);
        let a = p * stat.y;
        cells[local] = a;
        mean_part = a * stat.x;
    }
    lane_sums[local] = mean_part;
    workgroupBarrier();
    for (var step = 128u; step > 0u; step >>= 1u) {
        if local < step {
            lane_sums[local] += lane_sums[local + step];
        }
        workgroupBarrier();
    }
    let mean_sum = lane_sums[0];

    // Weight of each texel in y.
    for (var i = local; i < 4u * SIDE * SIDE; i += 256u) {
        let stage = i / (SIDE * SIDE);
        let ty = (i / SIDE) % SIDE;
        let tx = i % SIDE;
        var weight = 0.0;
        for (var m = 0u; m < count; m++) {
            weight += cells[m] * weights_y[(stage * WINDOW + m / WINDOW) * SIDE + ty]
                * weights_x[(stage * WINDOW + m % WINDOW) * SIDE + tx];
        }
        texels[i] = weight;
    }
    workgroupBarrier();
    first_channel = 0u;
    for (var stage = 0u; stage < 4u; stage++) {
        let map = params.stages[stage];
        let y0 = tap(row * POOL, map.ratio).low;
        let x0 = tap(column * POOL, map.ratio).low;
        for (var c = local; c < map.channels; c += 256u) {
            var sum = Channels(-mean_sum);
            for (var ty = 0u; ty < min(SIDE, map.size.x - y0); ty++) {
                for (var tx = 0u; tx < min(SIDE, map.size.y - x0); tx++) {
                    let weight = texels[(stage * SIDE + ty) * SIDE + tx];
                    if weight != 0.0 {
                        sum += weight * texel(stage, ((y0 + ty) * map.size.y + x0 + tx) * map.channels + c);
                    }
                }
            }
            output[u + first_channel + c] = sum;
        }
        first_channel += map.channels;
    }
}

// Whether texel `t` (along one side) of a stage can have weight in the window: WINDOW * POOL places a step of 1 / R
// apart lie between at most ceil((WINDOW * POOL - 1) / R) + 2 texels of a stage of ratio R.
fn in_window(stage: u32, t: u32) -> bool {
    let ratio = params.stages[stage].ratio;
    return t < (WINDOW * POOL + ratio - 2u) / ratio + 2u;
}
