// The next token for each row of logits, one workgroup per row: argmax, or temperature, top-k, top-p and a draw, in
// that order.
//
// The cut-offs of top-k and top-p are found without sorting, by radix selection: logits are mapped to integers of the
// same order, and four passes over 256-bin histograms fix 8 bits each. Probabilities are summed as integers of 2^-30,
// so the result does not depend on the order of the sum. All logits equal to the cut-off pass.
//
// A prelude has the parameters: sample_one.wgsl of one row, sample_rows.wgsl of each row.
// Dispatch: (rows, 1, 1).
struct Params {
    vocab: u32,
    output: u32,             // where in `sampled` to write the first row's
    top_k: u32,              // 0: all
    top_p: f32,              // 1: all
    inverse_temperature: f32,
    draw: f32,               // uniform in [0, 1)
}

override SAMPLE: u32 = 0; // 0: argmax

@group(0) @binding(0) var<storage, read> logits: array<f32>;
@group(0) @binding(1) var<storage, read_write> sampled: array<u32>;

var<workgroup> bins: array<atomic<u32>, 256>;
var<workgroup> found: vec2<u32>; // the bin that holds the cut-off, and the mass above it

var<private> first_logit: u32; // of this workgroup's row

fn logit(i: u32) -> f32 {
    return finite(logits[first_logit + i]);
}

// 2^30 times a probability.
fn mass(row: u32, value: f32, maximum: f32, total: f32) -> u32 {
    return u32(exp((value - maximum) * inverse_temperature(row)) / total * 1073741824.0);
}

// The largest key such that the tokens at or above it have at least `wanted` mass (in tokens where `by_count`, else in
// 2^-30 of probability), among tokens at or above `lowest`.
fn cut_off(row: u32, wanted: u32, by_count: bool, lowest: u32, maximum: f32, total: f32, local: u32) -> u32 {
    var prefix = 0u;
    var above = 0u; // mass of keys over the prefix's range
    for (var shift = 24i; shift >= 0; shift -= 8) {
        atomicStore(&bins[local], 0u);
        workgroupBarrier();
        let known = select(0xffffffffu << (u32(shift) + 8u), 0u, shift == 24);
        for (var i = local; i < params.vocab; i += WORKGROUP) {
            let k = key(logit(i));
            if k >= lowest && (k & known) == prefix && is_allowed(row, i) {
                var m = 1u;
                if !by_count {
                    m = mass(row, logit(i), maximum, total);
                }
                atomicAdd(&bins[(k >> u32(shift)) & 255u], m);
            }
        }
        workgroupBarrier();
        if local == 0u {
            var sum = above;
            var bin = 255u;
            loop {
                let here = atomicLoad(&bins[bin]);
                if sum + here >= wanted || bin == 0u {
                    break;
                }
                sum += here;
                bin--;
            }
            found = vec2(bin, sum);
        }
        let result = workgroupUniformLoad(&found);
        prefix |= result.x << u32(shift);
        above = result.y;
    }
    return prefix;
}

@compute @workgroup_size(WORKGROUP)
fn sample(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let row = group.x;
    first_logit = row * params.vocab;
    // Argmax; the lowest index wins ties.
    var value = LOWEST;
    var index = 0xffffffffu;
    for (var i = local; i < params.vocab; i += WORKGROUP) {
        let here = logit(i);
        if is_allowed(row, i) && (here > value || index == 0xffffffffu) {
            value = here;
            index = i;
        }
    }
    reduce_best(value, index, local);
    let maximum = values[0];
    let argmax = numbers[0];
    if SAMPLE == 0u || !draws(row) {
        if local == 0u {
            sampled[params.output + row] = argmax;
        }
        return;
    }
    workgroupBarrier();

    var lowest = 0u;
    if top_k(row) > 0u && top_k(row) < params.vocab {
        lowest = cut_off(row, top_k(row), true, 0u, maximum, 1.0, local);
    }
    // Denominator over what top-k left.
    let total = sum_over(row, lowest, maximum, local);
    if top_p(row) < 1.0 {
        lowest = max(lowest, cut_off(row, u32(max(top_p(row), 0.0) * 1073741824.0), false, lowest, maximum, total, local));
    }
    lowest = max(lowest, lowest_of_min_p(row, maximum));

    // The draw, in index order: each invocation owns a run of neighbouring tokens.
    let run = (params.vocab + WORKGROUP - 1u) / WORKGROUP;
    let begin = min(local * run, params.vocab);
    let end = min(begin + run, params.vocab);
    var mine = 0u;
    for (var i = begin; i < end; i++) {
        if key(logit(i)) >= lowest && is_allowed(row, i) {
            mine += mass(row, logit(i), maximum, total);
        }
    }
    numbers[local] = mine;
    workgroupBarrier();
    if local == 0u {
        var remaining = 0u;
        for (var i = 0u; i < WORKGROUP; i++) {
            remaining += numbers[i];
        }
        // A draw below 1 lands below the end.
        let aim = min(u32(f32(remaining) * draw(row)), max(remaining, 1u) - 1u);
        var sum = 0u;
        var owner = 0u;
        loop {
            if owner == WORKGROUP - 1u || sum + numbers[owner] > aim {
                break;
            }
            sum += numbers[owner];
            owner++;
        }
        var picked = argmax;
        let stop = min((owner + 1u) * run, params.vocab);
        for (var i = min(owner * run, params.vocab); i < stop; i++) {
            if key(logit(i)) >= lowest && is_allowed(row, i) {
                sum += mass(row, logit(i), maximum, total);
                if sum > aim {
                    picked = i;
                    break;
                }
            }
        }
        sampled[params.output + drawn_row(row)] = picked;
    }
}

fn sum_over(row: u32, lowest: u32, maximum: f32, local: u32) -> f32 {
    var sum = 0.0;
    for (var i = local; i < params.vocab; i += WORKGROUP) {
        if key(logit(i)) >= lowest && is_allowed(row, i) {
            sum += exp((logit(i) - maximum) * inverse_temperature(row));
        }
    }
    return sum_values(sum, local);
}
