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
// The same by fours: neighbouring columns are taken four at a time.
override SIDE4: u32 = (SIDE + 3) / 4;
const LOWEST: f32 = -3.402823e38;

@group(0) @binding(4) var<storage, read> inputs: array<Channels>; // u
@group(0) @binding(5) var<storage, read> stats: array<vec2<f32>>;
@group(0) @binding(6) var<storage, read_write> output: array<Channels>;

// First u . texel, then scores and weights of cells, then the weight of the texel in y: [stage, row, columns by four].
var<workgroup> texels: array<vec4<f32>, 4 * SIDE * SIDE4>;
// Weight of texel t of a stage in cell m along one axis: [stage, m, t].
var<workgroup> weights: array<f32, 4 * WINDOW * SIDE>;
// Cells weighted along one axis: [stage, row of texels, column of cells].
var<workgroup> strips: array<f32, 4 * SIDE * WINDOW>;
var<workgroup> partial: array<vec4<f32>, 256>;

@compute @workgroup_size(256)
fn mining(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
          @builtin(local_invocation_index) local: u32) {
    let token = group.x + group.y * groups.x;
    // The same for the whole workgroup.
    if token >= params.tokens {
        return;
    }
    let corner = vec2(params.first_row + (token / params.tokens_wide) * WINDOW,
                      params.first_column + (token % params.tokens_wide) * WINDOW);
    let u = token * params.channels;

    // u . texel. The stage is a constant in each call, so that no loop has a branch for it.
    let dots0 = window_dots(0u, u, corner, local);
    let dots1 = window_dots(1u, dots0, corner, local);
    let dots2 = window_dots(2u, dots1, corner, local);
    let dots3 = window_dots(3u, dots2, corner, local);
    // Sum of u, for the mean's part of the scores.
    var u_part = 0.0;
    for (var c = local; c < params.channels; c += 256u) {
        u_part += sum_channels(inputs[u + c]);
    }
    partial[local] = vec4(u_part);
    sum_partial(local, 256u);
    let u_sum = partial[0].x;

    // Scores and softmax: one invocation per cell.
    let count = WINDOW * WINDOW;
    let cell = corner + vec2(local / WINDOW, local % WINDOW);
    let at_cell = cell.x * params.width + cell.y;
    var stat = vec2(0.0);
    var score = LOWEST;
    if local < count {
        var value = 0.0;
        for (var stage = 0u; stage < 4u; stage++) {
            let map = params.stages[stage];
            let rows = taps(cell.x, map.ratio, map.size.x);
            let columns = taps(cell.y, map.ratio, map.size.y);
            let first = texel_corner(stage, corner);
            // A texel beyond the window's own has no weight, and is not in `texels`.
            let last = texel_counts(stage, first) - 1u;
            for (var y = 0u; y < POOL + 1u; y++) {
                let row = (stage * SIDE + min(rows.low + y - first.x, last.x)) * SIDE4;
                var of_row = 0.0;
                for (var x = 0u; x < POOL + 1u; x++) {
                    let column = min(columns.low + x - first.y, last.y);
                    of_row += columns.weight[x] * texels[row + (column >> 2u)][column & 3u];
                }
                value += rows.weight[y] * of_row;
            }
        }
        stat = stats[at_cell];
        score = (value - stat.x * u_sum) * stat.y;
        // As the reference: NaN counts as 0, infinities as the largest finite numbers. Detected by bits, since
        // compilers may assume that there are none.
        let bits = bitcast<u32>(score) & 0x7fffffffu;
        if bits > 0x7f800000u {
            score = 0.0;
        }
        score = clamp(score, LOWEST, -LOWEST);
    }
    workgroupBarrier();
    if local < count {
        texels[local] = vec4(score);
    }
    workgroupBarrier();
    var maximum = LOWEST;
    for (var m = 0u; m < count; m++) {
        maximum = max(maximum, texels[m].x);
    }
    // a[m] = p[m] / std[m], and the mean's part of y, which is the same for all channels.
    let p = select(0.0, exp(score - maximum), local < count);
    let a = p * stat.y;
    partial[local] = vec4(p, a * stat.x, 0.0, 0.0);
    sum_partial(local, 256u);
    let total = partial[0].x;
    let mean_sum = partial[0].y / total;
    if local < count {
        store_weight(at_cell, p / total);
        texels[local] = vec4(a / total);
    }

    // Weight of each texel in y: along the rows first, then along the columns.
    axis_weights(0u, corner.x, local);
    workgroupBarrier();
    for (var i = local; i < 4u * SIDE * WINDOW; i += 256u) {
        let stage = i / (SIDE * WINDOW);
        let t = (i / WINDOW) % SIDE;
        var weight = 0.0;
        for (var m = 0u; m < WINDOW; m++) {
            weight += texels[m * WINDOW + i % WINDOW].x * weights[(stage * WINDOW + m) * SIDE + t];
        }
        strips[i] = weight;
    }
    workgroupBarrier();
    axis_weights(1u, corner.y, local);
    workgroupBarrier();
    for (var i = local; i < 4u * SIDE * SIDE4; i += 256u) {
        let stage = i / (SIDE * SIDE4);
        let t = 4u * (i % SIDE4);
        let last = SIDE - 1u;
        var weight = vec4(0.0);
        for (var m = 0u; m < WINDOW; m++) {
            let at = (stage * WINDOW + m) * SIDE;
            weight += strips[i / SIDE4 * WINDOW + m] * vec4(weights[at + t], weights[at + min(t + 1u, last)],
                                                            weights[at + min(t + 2u, last)],
                                                            weights[at + min(t + 3u, last)]);
        }
        texels[i] = select(vec4(0.0), weight, t + vec4(0u, 1u, 2u, 3u) < vec4(SIDE));
    }
    workgroupBarrier();
    add_texels(0u, u, mean_sum, corner, local);
    add_texels(1u, dots0, mean_sum, corner, local);
    add_texels(2u, dots1, mean_sum, corner, local);
    add_texels(3u, dots2, mean_sum, corner, local);
}

// Adds up `partial` over runs of `lanes` invocations, a power of two; the first of each run has the sum. Every
// invocation must call it.
fn sum_partial(local: u32, lanes: u32) {
    workgroupBarrier();
    for (var step = lanes >> 1u; step > 0u; step >>= 1u) {
        if (local & (lanes - 1u)) < step {
            partial[local] += partial[local + step];
        }
        workgroupBarrier();
    }
}

// The first texel of a stage that has weight in the window.
fn texel_corner(stage: u32, corner: vec2<u32>) -> vec2<u32> {
    let ratio = params.stages[stage].ratio;
    return vec2(tap(corner.x * POOL, ratio).low, tap(corner.y * POOL, ratio).low);
}

// Texels along the sides of the window of a stage: WINDOW * POOL places a step of 1 / ratio apart lie between at most
// ceil((WINDOW * POOL - 1) / ratio) + 2 of them. Beyond the map there are none.
fn texel_counts(stage: u32, first: vec2<u32>) -> vec2<u32> {
    let map = params.stages[stage];
    return min(vec2(min(SIDE, (WINDOW * POOL + map.ratio - 2u) / map.ratio + 2u)), map.size - first);
}

// The indices of four neighbouring texels, the last one of the row again beyond it.
fn four_texels(row: u32, column: u32, map: Stage) -> vec4<u32> {
    return (row * map.size.y + min(column + vec4(0u, 1u, 2u, 3u), vec4(map.size.y - 1u))) * map.channels;
}

// texels = u . texel for a stage, whose part of u begins at `u`; returns the beginning of the next one's. As many
// invocations as there are for it share four texels.
fn window_dots(stage: u32, u: u32, corner: vec2<u32>, local: u32) -> u32 {
    let map = params.stages[stage];
    let first = texel_corner(stage, corner);
    let counts = texel_counts(stage, first);
    let fours = (counts.y + 3u) >> 2u;
    let quads = counts.x * fours;
    let lanes = 256u >> (32u - countLeadingZeros(quads - 1u));
    let quad = local / lanes;
    let row = quad / fours;
    let column4 = quad % fours;
    var sums = vec4(0.0);
    if quad < quads {
        let at = four_texels(first.x + row, first.y + 4u * column4, map);
        for (var c = local & (lanes - 1u); c < map.channels; c += lanes) {
            let x = inputs[u + c];
            sums += vec4(dot_channels(x, texel(stage, at.x + c)), dot_channels(x, texel(stage, at.y + c)),
                         dot_channels(x, texel(stage, at.z + c)), dot_channels(x, texel(stage, at.w + c)));
        }
    }
    partial[local] = sums;
    sum_partial(local, lanes);
    if quad < quads && (local & (lanes - 1u)) == 0u {
        texels[(stage * SIDE + row) * SIDE4 + column4] = partial[local];
    }
    workgroupBarrier();
    return u + map.channels;
}

// Fills `weights` for one axis: 0 for rows, 1 for columns. `first`: the window's first cell.
fn axis_weights(axis: u32, first: u32, local: u32) {
    for (var i = local; i < 4u * WINDOW * SIDE; i += 256u) {
        let map = params.stages[i / (SIDE * WINDOW)];
        let t = tap(first * POOL, map.ratio).low + i % SIDE;
        weights[i] = texel_weight(first + (i / SIDE) % WINDOW, t, map.ratio, map.size[axis]);
    }
}

// y = the weighted sum of the window's texels of a stage, less the mean's part.
fn add_texels(stage: u32, at: u32, mean_sum: f32, corner: vec2<u32>, local: u32) {
    let map = params.stages[stage];
    let first = texel_corner(stage, corner);
    let counts = texel_counts(stage, first);
    let row = map.size.y * map.channels;
    for (var c = local; c < map.channels; c += 256u) {
        var sum = Channels(-mean_sum);
        for (var column = 0u; column < counts.y; column += 4u) {
            var texel_at = four_texels(first.x, first.y + column, map) + c;
            var weight_at = stage * SIDE * SIDE4 + (column >> 2u);
            for (var y = 0u; y < counts.x; y++) {
                let weight = texels[weight_at];
                sum = fma(Channels(weight.x), texel(stage, texel_at.x), sum);
                sum = fma(Channels(weight.y), texel(stage, texel_at.y), sum);
                sum = fma(Channels(weight.z), texel(stage, texel_at.z), sum);
                sum = fma(Channels(weight.w), texel(stage, texel_at.w), sum);
                texel_at += row;
                weight_at += SIDE4;
            }
        }
        output[at + c] = sum;
    }
}
