// The next token for each row of logits as sample.wgsl chooses it, with a workgroup for each chunk of a large vocabulary:
// one workgroup would wait for memory most of the time.
//
// Argmax: `sample_largest`, `sample_best`. A draw, of one row: `sample_largest`; `sample_histogram` four times if there
// is a top_k; `sample_total`; `sample_histogram` four times if there is a top_p; `sample_mass`; `sample_draw`. Between
// them, `state` holds
//   the largest logit of each chunk and its index, for each row;
//   eight histograms of 256 bins, one for each `sample_histogram`;
//   for each of these, the digits of the cut-off found so far, and the mass above them;
//   each chunk's part of the denominator, and its mass.
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

const WORKGROUP: u32 = 256u;
const LOWEST: f32 = -3.402823e38;
const ONE: f32 = 1073741824.0; // the mass of probability 1

@group(0) @binding(0) var<storage, read> logits: array<f32>;
@group(0) @binding(1) var<storage, read_write> state: array<atomic<u32>>;
@group(0) @binding(2) var<storage, read_write> sampled: array<u32>;
@group(0) @binding(3) var<uniform> params: Params;

var<workgroup> values: array<f32, WORKGROUP>;
var<workgroup> numbers: array<u32, WORKGROUP>;
var<workgroup> bins: array<atomic<u32>, WORKGROUP>;
var<workgroup> found: vec2<u32>;

fn histograms() -> u32 {
    return 2u * params.chunks * params.rows;
}

fn cut_offs() -> u32 {
    return histograms() + 8u * WORKGROUP;
}

fn totals() -> u32 {
    return cut_offs() + 16u;
}

fn masses() -> u32 {
    return totals() + params.chunks;
}

// A logit made finite: NaN and minus infinity are the lowest there is. NaN is detected by its bits, since compilers may
// assume that there is none.
fn logit(i: u32) -> f32 {
    let value = logits[i];
    let is_nan = (bitcast<u32>(value) & 0x7fffffffu) > 0x7f800000u;
    return select(clamp(value, LOWEST, -LOWEST), LOWEST, is_nan);
}

// An integer that orders as the float does.
fn key(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    return select(bits | 0x80000000u, ~bits, (bits >> 31u) == 1u);
}

// The largest of the workgroup's values and its index; the lowest index wins ties.
fn reduce_best(value: f32, index: u32, local: u32) {
    values[local] = value;
    numbers[local] = index;
    workgroupBarrier();
    for (var step = WORKGROUP / 2u; step > 0u; step >>= 1u) {
        if local < step {
            let other = values[local + step];
            let other_index = numbers[local + step];
            if other > values[local] || (other == values[local] && other_index < numbers[local]) {
                values[local] = other;
                numbers[local] = other_index;
            }
        }
        workgroupBarrier();
    }
}

fn sum_values(value: f32, local: u32) -> f32 {
    workgroupBarrier();
    values[local] = value;
    workgroupBarrier();
    for (var step = WORKGROUP / 2u; step > 0u; step >>= 1u) {
        if local < step {
            values[local] += values[local + step];
        }
        workgroupBarrier();
    }
    let sum = values[0];
    workgroupBarrier();
    return sum;
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
fn total_of_chunks(local: u32) -> f32 {
    var sum = 0.0;
    for (var chunk = local; chunk < params.chunks; chunk += WORKGROUP) {
        sum += bitcast<f32>(atomicLoad(&state[totals() + chunk]));
    }
    return sum_values(sum, local);
}

fn weight(value: f32, maximum: f32) -> f32 {
    return exp((value - maximum) * params.inverse_temperature);
}

fn mass(value: f32, maximum: f32, total: f32) -> u32 {
    return u32(weight(value, maximum) / total * ONE);
}

// Returns the cut-off's digits up to `histogram`, and the mass above them. The digit is the highest bin that reaches top_k
// or top_p together with the bins above it. Workgroup 0 stores both.
fn cut_off(histogram: u32, group: u32, local: u32) -> vec2<u32> {
    let digit = histogram & 3u;
    var before = vec2(0u);
    if digit > 0u {
        let at = cut_offs() + 2u * (histogram - 1u);
        before = vec2(atomicLoad(&state[at]), atomicLoad(&state[at + 1u]));
    }
    var wanted = params.top_k;
    if histogram >= 4u {
        wanted = u32(max(params.top_p, 0.0) * ONE);
    }
    // Sums of this bin and those above.
    workgroupBarrier();
    numbers[local] = atomicLoad(&state[histograms() + histogram * WORKGROUP + local]);
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
        let at = cut_offs() + 2u * histogram;
        atomicStore(&state[at], result.x);
        atomicStore(&state[at + 1u], result.y);
    }
    return result;
}

fn has_top_k() -> bool {
    return params.top_k > 0u && params.top_k < params.vocab;
}

// The lowest key that top_k leaves, once it was stored.
fn lowest_of_top_k() -> u32 {
    var lowest = 0u;
    if has_top_k() {
        lowest = atomicLoad(&state[cut_offs() + 6u]);
    }
    return lowest;
}

// The lowest key that top_k and top_p leave. The last histogram's cut-off is found here.
fn lowest_of_both(group: u32, local: u32) -> u32 {
    var lowest = lowest_of_top_k();
    if params.top_p < 1.0 {
        lowest = max(lowest, cut_off(7u, group, local).x);
    }
    return lowest;
}

// Dispatch: (chunks, rows, 1).
@compute @workgroup_size(WORKGROUP)
fn sample_largest(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let row_start = group.y * params.vocab;
    let end = min((group.x + 1u) * params.chunk, params.vocab);
    var value = LOWEST;
    var index = 0xffffffffu;
    for (var i = group.x * params.chunk + local; i < end; i += WORKGROUP) {
        let here = logit(row_start + i);
        if here > value || index == 0xffffffffu {
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
            atomicStore(&state[histograms() + histogram * WORKGROUP + local], 0u);
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
// whose higher bits are those of the cut-off. Dispatch: (chunks, 1, 1).
@compute @workgroup_size(WORKGROUP)
fn sample_histogram(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let by_mass = params.histogram >= 4u;
    let digit = params.histogram & 3u;
    let shift = 24u - 8u * digit;
    var prefix = 0u;
    var known = 0u;
    if digit > 0u {
        prefix = cut_off(params.histogram - 1u, group.x, local).x;
        known = 0xffffffffu << (shift + 8u);
    }
    var lowest = 0u;
    var maximum = 0.0;
    var total = 1.0;
    if by_mass {
        lowest = lowest_of_top_k();
        largest_of_row(0u, local);
        maximum = values[0];
        total = total_of_chunks(local);
    }
    atomicStore(&bins[local], 0u);
    workgroupBarrier();
    let end = min((group.x + 1u) * params.chunk, params.vocab);
    for (var i = group.x * params.chunk + local; i < end; i += WORKGROUP) {
        let value = logit(i);
        let k = key(value);
        if k >= lowest && (k & known) == prefix {
            var m = 1u;
            if by_mass {
                m = mass(value, maximum, total);
            }
            atomicAdd(&bins[(k >> shift) & 255u], m);
        }
    }
    workgroupBarrier();
    let here = atomicLoad(&bins[local]);
    if here > 0u {
        atomicAdd(&state[histograms() + params.histogram * WORKGROUP + local], here);
    }
}

// A chunk's part of the denominator, over what top_k left. Dispatch: (chunks, 1, 1).
@compute @workgroup_size(WORKGROUP)
fn sample_total(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    var lowest = 0u;
    if has_top_k() {
        lowest = cut_off(3u, group.x, local).x;
    }
    largest_of_row(0u, local);
    let maximum = values[0];
    let end = min((group.x + 1u) * params.chunk, params.vocab);
    var sum = 0.0;
    for (var i = group.x * params.chunk + local; i < end; i += WORKGROUP) {
        let value = logit(i);
        if key(value) >= lowest {
            sum += weight(value, maximum);
        }
    }
    sum = sum_values(sum, local);
    if local == 0u {
        atomicStore(&state[totals() + group.x], bitcast<u32>(sum));
    }
}

// The mass of what is left of a chunk. Dispatch: (chunks, 1, 1).
@compute @workgroup_size(WORKGROUP)
fn sample_mass(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let lowest = lowest_of_both(group.x, local);
    largest_of_row(0u, local);
    let maximum = values[0];
    let total = total_of_chunks(local);
    let end = min((group.x + 1u) * params.chunk, params.vocab);
    var sum = 0u;
    for (var i = group.x * params.chunk + local; i < end; i += WORKGROUP) {
        let value = logit(i);
        if key(value) >= lowest {
            sum += mass(value, maximum, total);
        }
    }
    sum = sum_numbers(sum, local);
    if local == 0u {
        atomicStore(&state[masses() + group.x], sum);
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

// The draw, in index order. Dispatch: (1, 1, 1); at most 256 chunks.
@compute @workgroup_size(WORKGROUP)
fn sample_draw(@builtin(local_invocation_index) local: u32) {
    let lowest = lowest_of_both(1u, local);
    largest_of_row(0u, local);
    let maximum = values[0];
    let argmax = numbers[0];
    let total = total_of_chunks(local);
    var chunk_mass = 0u;
    if local < params.chunks {
        chunk_mass = atomicLoad(&state[masses() + local]);
    }
    let remaining = sum_numbers(chunk_mass, local);
    // A draw below 1 lands below the end.
    let aim = min(u32(f32(remaining) * params.draw), max(remaining, 1u) - 1u);
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
        let value = logit(i);
        if key(value) >= lowest {
            mine += mass(value, maximum, total);
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
            let value = logit(i);
            if key(value) >= lowest {
                sum += mass(value, maximum, total);
                if sum > aim {
                    picked = i;
                    break;
                }
            }
        }
        sampled[params.output] = picked;
    }
}
