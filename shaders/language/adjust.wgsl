// Logit processors on logits [rows, vocab], in place, in this order: `adjust_bias`, then `adjust_penalties`. After the
// token was chosen, `adjust_count` counts it.
struct Params {
    vocab: u32,
    count: u32,  // entries, or rows
    output: u32, // where in `sampled` the first row's token is
}

const SEEN: u32 = 0x80000000u; // in a count: the token is in the prompt. The other bits count it in the answer.

// Bits of logits; `adjust_count`: counts [sequences, vocab].
@group(0) @binding(0) var<storage, read_write> changed: array<u32>;
// `adjust_bias`: (index in the logits, bits of what is added) of each entry, every index once. Otherwise of each row the
// bits of its repetition, presence and frequency penalty, and 1 + its sequence; 0: none.
@group(0) @binding(1) var<storage, read> entries: array<u32>;
// `adjust_penalties`: counts; `adjust_count`: the chosen tokens.
@group(0) @binding(2) var<storage, read> numbers: array<u32>;
@group(0) @binding(3) var<uniform> params: Params;

// Dispatch: (ceil(entries / 64), 1, 1).
@compute @workgroup_size(64)
fn adjust_bias(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x < params.count {
        let at = entries[2u * id.x];
        changed[at] = bitcast<u32>(bitcast<f32>(changed[at]) + bitcast<f32>(entries[2u * id.x + 1u]));
    }
}

// Dispatch: (ceil(vocab / 256), rows, 1).
@compute @workgroup_size(256)
fn adjust_penalties(@builtin(global_invocation_id) id: vec3<u32>) {
    let sequence = entries[4u * id.y + 3u];
    if sequence == 0u || id.x >= params.vocab {
        return;
    }
    let seen = numbers[(sequence - 1u) * params.vocab + id.x];
    if seen == 0u {
        return;
    }
    let at = id.y * params.vocab + id.x;
    var logit = bitcast<f32>(changed[at]);
    let repetition = bitcast<f32>(entries[4u * id.y]);
    logit = select(logit * repetition, logit / repetition, logit > 0.0);
    let count = seen & ~SEEN;
    if count > 0u {
        logit -= bitcast<f32>(entries[4u * id.y + 2u]) * f32(count) + bitcast<f32>(entries[4u * id.y + 1u]);
    }
    changed[at] = bitcast<u32>(logit);
}

// Dispatch: (ceil(rows / 64), 1, 1).
@compute @workgroup_size(64)
fn adjust_count(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= params.count {
        return;
    }
    let sequence = entries[4u * id.x + 3u];
    let token = numbers[params.output + id.x];
    if sequence > 0u && token < params.vocab {
        changed[(sequence - 1u) * params.vocab + token] += 1u;
    }
}
