// The next token for each row of logits as sample.wgsl chooses it, with a workgroup for each chunk of a large vocabulary:
// one workgroup would wait for memory most of the time.
//
// Argmax: `sample_largest`, `sample_best`. A draw: `sample_largest`; `sample_histogram` four times if there is a top_k;
// `sample_total`; `sample_histogram` four times if there is a top_p; `sample_mass`; `sample_draw`. Between them, `state`
// holds
//   the largest logit of each chunk and its index, for each row;
// then for each drawn row
//   eight histograms of 256 bins, one for each `sample_histogram`;
//   for each of these, the digits of the cut-off found so far, and the mass above them;
//   each chunk's part of the denominator, and its mass.
//
// A prelude has the parameters: sample_one.wgsl of one row, sample_rows.wgsl of each row.
struct Params {
    vocab: u32,
    chunk: u32,              // logits of a workgroup: a multiple of 256
    chunks: u32,
    rows: u32,
    output: u32,             // where in `sampled` to write the first row's
    top_k: u32,              // 0: all
    top_p: f32,              // 1: all
    inverse_temperature: f32,
    draw: f32,               // uniform in [0, 1)
    histogram: u32,          // the number of this histogram: 0 to 3 for top_k, 4 to 7 for top_p
}

const ONE: f32 = 1073741824.0; // the mass of probability 1

@group(0) @binding(0) var<storage, read> logits: array<f32>;
@group(0) @binding(1) var<storage, read_write> state: array<atomic<u32>>;
@group(0) @binding(2) var<storage, read_write> sampled: array<u32>;

var<workgroup> bins: array<atomic<u32>, WORKGROUP>;
var<workgroup> found: vec2<u32>;

fn histograms(row: u32) -> u32 {
    return 2u * params.chunks * params.rows + drawn_row(row) * (8u * WORKGROUP + 16u + 2u * params.chunks);
}

fn cut_offs(row: u32) -> u32 {
    return histograms(row) + 8u * WORKGROUP;
}

fn totals(row: u32) -> u32 {
    return cut_offs(row) + 16u;
}

fn masses(row: u32) -> u32 {
    return totals(row) + params.chunks;
}

// A logit of the row, made finite.
fn logit(row: u32, i: u32) -> f32 {
    return finite(logits[drawn_row(row) * params.vocab + i]);
}

fn sum_numbers(number: u32, local: u32) -> u32 {
    workgroupBarrier();
    numbers[local] = number;
    workgroupBarrier();
    for (var step = WORKGROUP / 2u; step > 0u; step >>= 1u) {
        if local < step {
            numbers[local] += numbers[local + step];
        }
        workgroupBarrier();
    }
    let sum = numbers[0];
    workgroupBarrier();
    return sum;
}

// The largest logit of a row and its index.
fn largest_of_row(row: u32, local: u32) {
    var value = LOWEST;
    var index = 0xffffffffu;
    for (var chunk = local; chunk < params.chunks; chunk += WORKGROUP) {
        let at = 2u * (row * params.chunks + chunk);
        let here = bitcast<f32>(atomicLoad(&state[at]));
        if here > value || index == 0xffffffffu {
            value = here;
            index = atomicLoad(&state[at + 1u]);
        }
    }
    reduce_best(value, index, local);
}

// The denominator of the probabilities.
fn total_of_chunks(row: u32, local: u32) -> f32 {
    var sum = 0.0;
    for (var chunk = local; chunk < params.chunks; chunk += WORKGROUP) {
        sum += bitcast<f32>(atomicLoad(&state[totals(row) + chunk]));
    }
    return sum_values(sum, local);
}

fn weight(row: u32, value: f32, maximum: f32) -> f32 {
    return exp((value - maximum) * inverse_temperature(row));
}

fn mass(row: u32, value: f32, maximum: f32, total: f32) -> u32 {
    return u32(weight(row, value, maximum) / total * ONE);
}

// Returns the cut-off's digits up to `histogram`, and the mass above them. The digit is the highest bin that reaches top_k
// or top_p together with the bins above it. Workgroup 0 stores both.
fn cut_off(row: u32, histogram: u32, group: u32, local: u32) -> vec2<u32> {
    let digit = histogram & 3u;
    var before = vec2(0u);
    if digit > 0u {
        let at = cut_offs(row) + 2u * (histogram - 1u);
        before = vec2(atomicLoad(&state[at]), atomicLoad(&state[at + 1u]));
    }
    var wanted = top_k(row);
    if histogram >= 4u {
        wanted = u32(max(top_p(row), 0.0) * ONE);
    }
    // Sums of this bin and those above.
    workgroupBarrier();
    numbers[local] = atomicLoad(&state[histograms(row) + histogram * WORKGROUP + local]);
    workgroupBarrier();
    for (var step = 1u; step < WORKGROUP; step <<= 1u) {
        var more = 0u;
        if local + step < WORKGROUP {
            more = numbers[local + step];
        }
        workgroupBarrier();
        numbers[local] += more;
        workgroupBarrier();
    }
    var above = before.y;
    if local + 1u < WORKGROUP {
        above += numbers[local + 1u];
    }
    let reaches = before.y + numbers[local] >= wanted || local == 0u;
    if reaches && (above < wanted || local + 1u == WORKGROUP) {
        found = vec2(before.x | (local << (24u - 8u * digit)), above);
    }
    let result = workgroupUniformLoad(&found);
    if group == 0u && local == 0u {
        let at = cut_offs(row) + 2u * histogram;
        atomicStore(&state[at], result.x);
        atomicStore(&state[at + 1u], result.y);
    }
    return result;
}

fn has_top_k(row: u32) -> bool {
    return top_k(row) > 0u && top_k(row) < params.vocab;
}

// The lowest key that top_k leaves, once it was stored.
fn lowest_of_top_k(row: u32) -> u32 {
    var lowest = 0u;
    if has_top_k(row) {
        lowest = atomicLoad(&state[cut_offs(row) + 6u]);
    }
    return lowest;
}

// The lowest key that top_k and top_p leave. The last histogram's cut-off is found here.
fn lowest_of_both(row: u32, group: u32, local: u32) -> u32 {
    var lowest = lowest_of_top_k(row);
    if top_p(row) < 1.0 {
        lowest = max(lowest, cut_off(row, 7u, group, local).x);
    }
    return lowest;
}

// Dispatch: (chunks, rows, 1).
@compute @workgroup_size(WORKGROUP)
fn sample_largest(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let row = drawn_row(group.y);
    let row_start = group.y * params.vocab;
    let end = min((group.x + 1u) * params.chunk, params.vocab);
    var value = LOWEST;
    var index = 0xffffffffu;
    for (var i = group.x * params.chunk + local; i < end; i += WORKGROUP) {
        let here = finite(logits[row_start + i]);
        if is_allowed(row, i) && (here > value || index == 0xffffffffu) {
            value = here;
            index = i;
        }
    }
    reduce_best(value, index, local);
    if local == 0u {
        let at = 2u * (group.y * params.chunks + group.x);
        atomicStore(&state[at], bitcast<u32>(values[0]));
        atomicStore(&state[at + 1u], numbers[0]);
    }
    // For a draw.
    if group.x == 0u {
        for (var histogram = 0u; histogram < 8u; histogram++) {
            atomicStore(&state[histograms(row) + histogram * WORKGROUP + local], 0u);
        }
    }
}

// Dispatch: (rows, 1, 1).
@compute @workgroup_size(WORKGROUP)
fn sample_best(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    largest_of_row(group.x, local);
    if local == 0u {
        sampled[params.output + group.x] = numbers[0];
    }
}

// Eight bits of the keys of a chunk, from the highest: how many tokens, or how much mass, has each value. Only keys count
// whose higher bits are those of the cut-off. Dispatch: (chunks, rows, 1).
@compute @workgroup_size(WORKGROUP)
fn sample_histogram(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let row = drawn_row(group.y);
    if !has_histogram(row, params.histogram) {
        return;
    }
    let by_mass = params.histogram >= 4u;
    let digit = params.histogram & 3u;
    let shift = 24u - 8u * digit;
    var prefix = 0u;
    var known = 0u;
    if digit > 0u {
        prefix = cut_off(row, params.histogram - 1u, group.x, local).x;
        known = 0xffffffffu << (shift + 8u);
    }
    var lowest = 0u;
    var maximum = 0.0;
    var total = 1.0;
    if by_mass {
        lowest = lowest_of_top_k(row);
        largest_of_row(row, local);
        maximum = values[0];
        total = total_of_chunks(row, local);
    }
    atomicStore(&bins[local], 0u);
    workgroupBarrier();
    let end = min((group.x + 1u) * params.chunk, params.vocab);
    for (var i = group.x * params.chunk + local; i < end; i += WORKGROUP) {
        let value = logit(row, i);
        let k = key(value);
        if k >= lowest && (k & known) == prefix && is_allowed(row, i) {
            var m = 1u;
            if by_mass {
                m = mass(row, value, maximum, total);
            }
            atomicAdd(&bins[(k >> shift) & 255u], m);
        }
    }
    workgroupBarrier();
    let here = atomicLoad(&bins[local]);
    if here > 0u {
        atomicAdd(&state[histograms(row) + params.histogram * WORKGROUP + local], here);
    }
}

// A chunk's part of the denominator, over what top_k left. Dispatch: (chunks, rows, 1).
@compute @workgroup_size(WORKGROUP)
fn sample_total(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let row = drawn_row(group.y);
    if !draws(row) {
        return;
    }
    var lowest = 0u;
    if has_top_k(row) {
        lowest = cut_off(row, 3u, group.x, local).x;
    }
    largest_of_row(row, local);
    let maximum = values[0];
    let end = min((group.x + 1u) * params.chunk, params.vocab);
    var sum = 0.0;
    for (var i = group.x * params.chunk + local; i < end; i += WORKGROUP) {
        let value = logit(row, i);
        if key(value) >= lowest && is_allowed(row, i) {
            sum += weight(row, value, maximum);
        }
    }
    sum = sum_values(sum, local);
    if local == 0u {
        atomicStore(&state[totals(row) + group.x], bitcast<u32>(sum));
    }
}

// The mass of what is left of a chunk. Dispatch: (chunks, rows, 1).
@compute @workgroup_size(WORKGROUP)
fn sample_mass(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let row = drawn_row(group.y);
    if !draws(row) {
        return;
    }
    let cut = lowest_of_both(row, group.x, local);
    largest_of_row(row, local);
    let maximum = values[0];
    let lowest = max(cut, lowest_of_min_p(row, maximum));
    let total = total_of_chunks(row, local);
    let end = min((group.x + 1u) * params.chunk, params.vocab);
    var sum = 0u;
    for (var i = group.x * params.chunk + local; i < end; i += WORKGROUP) {
        let value = logit(row, i);
        if key(value) >= lowest && is_allowed(row, i) {
            sum += mass(row, value, maximum, total);
        }
    }
    sum = sum_numbers(sum, local);
    if local == 0u {
        atomicStore(&state[masses(row) + group.x], sum);
    }
}

// The part of `count` parts, `each` in `numbers`, that holds `aim`, and the mass before it.
fn part_of(aim: u32, count: u32) -> vec2<u32> {
    var sum = 0u;
    var part = 0u;
    loop {
        if part + 1u >= count || sum + numbers[part] > aim {
            break;
        }
        sum += numbers[part];
        part++;
    }
    return vec2(part, sum);
}

// The draw, in index order. Dispatch: (1, rows, 1); at most 256 chunks.
@compute @workgroup_size(WORKGROUP)
fn sample_draw(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let row = drawn_row(group.y);
    var cut = 0u;
    if draws(row) {
        cut = lowest_of_both(row, 1u, local);
    }
    largest_of_row(row, local);
    let maximum = values[0];
    let argmax = numbers[0];
    if !draws(row) {
        if local == 0u {
            sampled[params.output + row] = argmax;
        }
        return;
    }
    let lowest = max(cut, lowest_of_min_p(row, maximum));
    let total = total_of_chunks(row, local);
    var chunk_mass = 0u;
    if local < params.chunks {
        chunk_mass = atomicLoad(&state[masses(row) + local]);
    }
    let remaining = sum_numbers(chunk_mass, local);
    // A draw below 1 lands below the end.
    let aim = min(u32(f32(remaining) * draw(row)), max(remaining, 1u) - 1u);
    numbers[local] = chunk_mass;
    workgroupBarrier();
    if local == 0u {
        found = part_of(aim, params.chunks);
    }
    let chunk = workgroupUniformLoad(&found);
    // Each invocation has a run of neighbouring tokens of the chunk.
    let run = params.chunk / WORKGROUP;
    let begin = min(chunk.x * params.chunk + local * run, params.vocab);
    let end = min(begin + run, params.vocab);
    var mine = 0u;
    for (var i = begin; i < end; i++) {
        let value = logit(row, i);
        if key(value) >= lowest && is_allowed(row, i) {
            mine += mass(row, value, maximum, total);
        }
    }
    numbers[local] = mine;
    workgroupBarrier();
    if local == 0u {
        let owner = part_of(aim - chunk.y, WORKGROUP);
        var sum = chunk.y + owner.y;
        var picked = argmax;
        let first = chunk.x * params.chunk + owner.x * run;
        let stop = min(first + run, params.vocab);
        for (var i = min(first, params.vocab); i < stop; i++) {
            let value = logit(row, i);
            if key(value) >= lowest && is_allowed(row, i) {
                sum += mass(row, value, maximum, total);
                if sum > aim {
                    picked = i;
                    break;
                }
            }
        }
        sampled[params.output + drawn_row(row)] = picked;
    }
}
