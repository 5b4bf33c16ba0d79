// Log-probabilities of tokens, log-softmax(logits) for logits [rows, vocab]: those of the sampled token and of the `top`
// best. `logprobs_chunk` finds the best of each chunk of the vocabulary, `logprobs_row` those of the row. Among equals
// the lowest id comes first.
//
// state [rows, chunks, 2 + 2 top]: of each chunk the largest logit, the sum of exp(logit - largest), and its best, each
// as logit and id. output [.., 1 + 2 top], from row `output` on: the sampled token's log-probability, then of each of
// the best its id and log-probability. Ids are u32. Where there are fewer tokens, the id is 0xffffffff.
struct Params {
    vocab: u32,
    chunk: u32,  // logits of a workgroup
    chunks: u32,
    top: u32,
    output: u32, // where in `sampled` the first row's token is, and the first row of `output` to write
}

const NONE: u32 = 0xffffffffu;

@group(0) @binding(0) var<storage, read> logits: array<f32>;
@group(0) @binding(1) var<storage, read> sampled: array<u32>;
@group(0) @binding(2) var<storage, read_write> state: array<u32>;
@group(0) @binding(3) var<storage, read_write> output: array<u32>;
@group(0) @binding(4) var<uniform> params: Params;

// Adds a logit to a search in `best`, (bits of the logit, id): for the first of all if `any`, else for the next after
// (last, last_id).
fn consider(value: f32, id: u32, any: bool, last: f32, last_id: u32, best: vec2<u32>) -> vec2<u32> {
    let is_after = any || (last_id != NONE && (value < last || (value == last && id > last_id)));
    let is_better = best.y == NONE || value > bitcast<f32>(best.x) || (value == bitcast<f32>(best.x) && id < best.y);
    return select(best, vec2(bitcast<u32>(value), id), id != NONE && is_after && is_better);
}

// Dispatch: (chunks, rows, 1).
@compute @workgroup_size(WORKGROUP)
fn logprobs_chunk(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let begin = group.x * params.chunk;
    let end = min(begin + params.chunk, params.vocab);
    let first = group.y * params.vocab;
    let at = (group.y * params.chunks + group.x) * (2u + 2u * params.top);
    var last = 0.0;
    var last_id = NONE;
    var largest = 0.0;
    // The first round also finds the largest.
    for (var round = 0u; round < max(params.top, 1u); round++) {
        var best = vec2(bitcast<u32>(LOWEST), NONE);
        for (var i = begin + local; i < end; i += WORKGROUP) {
            best = consider(finite(logits[first + i]), i, round == 0u, last, last_id, best);
        }
        reduce_best(bitcast<f32>(best.x), best.y, local);
        last = values[0];
        last_id = numbers[0];
        workgroupBarrier();
        if round == 0u {
            largest = last;
        }
        if local == 0u && round < params.top {
            state[at + 2u + 2u * round] = bitcast<u32>(last);
            state[at + 3u + 2u * round] = last_id;
        }
    }
    var sum = 0.0;
    for (var i = begin + local; i < end; i += WORKGROUP) {
        sum += exp(finite(logits[first + i]) - largest);
    }
    sum = sum_values(sum, local);
    if local == 0u {
        state[at] = bitcast<u32>(largest);
        state[at + 1u] = bitcast<u32>(sum);
    }
}

// Dispatch: (rows, 1, 1).
@compute @workgroup_size(WORKGROUP)
fn logprobs_row(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let stride = 2u + 2u * params.top;
    let first = group.x * params.chunks * stride;
    var best = vec2(bitcast<u32>(LOWEST), NONE);
    for (var chunk = local; chunk < params.chunks; chunk += WORKGROUP) {
        best = consider(bitcast<f32>(state[first + chunk * stride]), chunk, true, 0.0, NONE, best);
    }
    reduce_best(bitcast<f32>(best.x), best.y, local);
    let largest = values[0];
    var sum = 0.0;
    for (var chunk = local; chunk < params.chunks; chunk += WORKGROUP) {
        let at = first + chunk * stride;
        sum += bitcast<f32>(state[at + 1u]) * exp(bitcast<f32>(state[at]) - largest);
    }
    let log_sum = log(sum_values(sum, local));
    let row = params.output + group.x;
    let at = row * (1u + 2u * params.top);
    if local == 0u {
        let token = min(sampled[row], params.vocab - 1u);
        output[at] = bitcast<u32>(finite(logits[group.x * params.vocab + token]) - largest - log_sum);
    }
    var last = 0.0;
    var last_id = NONE;
    for (var round = 0u; round < params.top; round++) {
        var best = vec2(bitcast<u32>(LOWEST), NONE);
        for (var i = local; i < params.chunks * params.top; i += WORKGROUP) {
            let at = first + (i / params.top) * stride + 2u + 2u * (i % params.top);
            best = consider(bitcast<f32>(state[at]), state[at + 1u], round == 0u, last, last_id, best);
        }
        reduce_best(bitcast<f32>(best.x), best.y, local);
        last = values[0];
        last_id = numbers[0];
        workgroupBarrier();
        if local == 0u {
            output[at + 1u + 2u * round] = last_id;
            output[at + 2u + 2u * round] = bitcast<u32>(last - largest - log_sum);
        }
    }
}
