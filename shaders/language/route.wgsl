// Expert routing of a mixture of experts: softmax over all experts, the TOP_K best (the first wins ties), weights
// renormalised to sum 1 (unless OF_ALL), times `scale`. One workgroup; when the lists are made an invocation serves one expert, so that each list is
// in token order.
//     logits [tokens, experts] -> weights [tokens, TOP_K]; routes [experts][1 + capacity]: count, then slots
//     token * TOP_K + choice
// Dispatch: (1, 1, 1).
struct Params {
    tokens: u32,
    experts: u32,
    capacity: u32, // slots an expert's list has room for: tokens (a token picks an expert once)
    scale: f32,
}

override TOP_K: u32 = 2;
override OF_ALL: u32 = 0; // weights are shares of all experts

@group(0) @binding(0) var<storage, read> logits: array<f32>;
@group(0) @binding(1) var<storage, read_write> weights: array<f32>;
@group(0) @binding(2) var<storage, read_write> routes: array<u32>;
@group(0) @binding(3) var<storage, read_write> experts_chosen: array<u32>; // [tokens, TOP]
@group(0) @binding(4) var<uniform> params: Params;

@compute @workgroup_size(64)
fn route(@builtin(local_invocation_index) local: u32) {
    for (var token = local; token < params.tokens; token += 64u) {
        let start = token * params.experts;
        var best = 0.0;
        var total = 0.0;
        // The expert chosen before and its logit: those after it in the order of choices are left.
        var last = 3.4e38;
        var last_at = 0u;
        for (var choice = 0u; choice < TOP_K; choice++) {
            var at = 0u;
            var value = -3.0e38;
            for (var e = 0u; e < params.experts; e++) {
                let logit = logits[start + e];
                let is_left = choice == 0u || logit < last || (logit == last && e > last_at);
                if is_left && logit > value {
                    value = logit;
                    at = e;
                }
            }
            last = value;
            last_at = at;
            if choice == 0u {
                best = value;
            }
            // The softmax's own denominator cancels when the chosen are renormalised.
            let weight = exp(value - best);
            total += weight;
            weights[token * TOP_K + choice] = weight;
            experts_chosen[token * TOP_K + choice] = at;
        }
        if OF_ALL == 1u {
            total = 0.0;
            for (var e = 0u; e < params.experts; e++) {
                total += exp(logits[start + e] - best);
            }
        }
        for (var choice = 0u; choice < TOP_K; choice++) {
            weights[token * TOP_K + choice] /= total;
            weights[token * TOP_K + choice] *= params.scale;
        }
    }
    storageBarrier();
    for (var e = local; e < params.experts; e += 64u) {
        let start = e * (1u + params.capacity);
        var count = 0u;
        for (var slot = 0u; slot < params.tokens * TOP_K; slot++) {
            if experts_chosen[slot] == e && count < params.capacity {
                routes[start + 1u + count] = slot;
                count++;
            }
        }
        routes[start] = count;
    }
}
