// Attention with online softmax (see attention_common.wgsl) for software adapters with subgroups of eight, where loads
// and barriers are slow and shuffles fast (see matmul_subgroup.wgsl). A workgroup is one subgroup. It takes eight keys
// at a time: for the scores a lane has one of them; for the outputs a lane has every eighth vec4 of the head,
// HEAD_CHUNKS in all, and the probabilities are shared by shuffles. HEAD4, HEAD_CHUNKS and ROWS are lengths of arrays.
const LANES: u32 = 8u;

// The largest of the eight lanes' values, in all of them.
fn largest(value: f32, lane: u32) -> f32 {
    var m = max(value, subgroupShuffle(value, lane ^ 1u));
    m = max(m, subgroupShuffle(m, lane ^ 2u));
    return max(m, subgroupShuffle(m, lane ^ 4u));
}

@compute @workgroup_size(LANES)
fn attention_subgroup(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                      @builtin(subgroup_invocation_id) lane: u32) {
    let kv_head = group.y;
    let work = work_of(group);
    let row0 = work.block * ROWS;
    let last_row = query_rows(work) - 1u;
    let range = key_range(work, min(row0 + ROWS - 1u, last_row));
    if is_idle(work, range) {
        return;
    }
    let last_key = range.y - 1u;
    var query: array<array<vec4<f32>, ROWS>, HEAD_CHUNKS>;
    var sums: array<array<vec4<f32>, ROWS>, HEAD_CHUNKS>;
    var maxima: array<f32, ROWS>;
    var totals: array<f32, ROWS>; // each lane's own keys
    for (var r = 0u; r < ROWS; r++) {
        let at = query_offset(work, min(row0 + r, last_row), kv_head);
        for (var p = 0u; p < HEAD_CHUNKS; p++) {
            query[p][r] = params.scale * queries[at + min(p * LANES + lane, HEAD4 - 1u)];
        }
        maxima[r] = LOWEST;
    }
    for (var block = range.x; block < range.y; block += LANES) {
        let key = block + lane;
        let key_at = params.key_start + stored_row(work, min(key, last_key)) * params.key_stride + kv_head * HEAD4;
        var scores = array<f32, ROWS>();
        for (var p = 0u; p < HEAD_CHUNKS; p++) {
            for (var i = 0u; i < LANES; i++) {
                if p * LANES + i < HEAD4 {
                    let k = key4(key_at + p * LANES + i);
                    for (var r = 0u; r < ROWS; r++) {
                        let q = query[p][r];
                        scores[r] = fma(subgroupShuffle(q.x, i), k.x, scores[r]);
                        scores[r] = fma(subgroupShuffle(q.y, i), k.y, scores[r]);
                        scores[r] = fma(subgroupShuffle(q.z, i), k.z, scores[r]);
                        scores[r] = fma(subgroupShuffle(q.w, i), k.w, scores[r]);
                    }
                }
            }
        }
        for (var r = 0u; r < ROWS; r++) {
            let score = select(LOWEST, scores[r], attends(work, min(row0 + r, last_row), key, range.y));
            let maximum = max(maxima[r], largest(score, lane));
            let factor = exp(maxima[r] - maximum);
            scores[r] = exp(score - maximum);
            totals[r] = fma(totals[r], factor, scores[r]);
            maxima[r] = maximum;
            for (var p = 0u; p < HEAD_CHUNKS; p++) {
                sums[p][r] *= factor;
            }
        }
        for (var i = 0u; i < LANES; i++) {
            // Keys past the end have a probability of 0.
            let value_at = params.value_start + stored_row(work, min(block + i, last_key)) * params.value_stride + kv_head * HEAD4;
            for (var p = 0u; p < HEAD_CHUNKS; p++) {
                let v = value4(value_at + min(p * LANES + lane, HEAD4 - 1u));
                for (var r = 0u; r < ROWS; r++) {
                    sums[p][r] = fma(vec4(subgroupShuffle(scores[r], i)), v, sums[p][r]);
                }
            }
        }
    }
    // The rows are rotated to index 0, one after the other (see matmul_subgroup.wgsl).
    let rows = min(ROWS, last_row + 1u - row0);
    for (var r = 0u; r < rows; r++) {
        let total = subgroupAdd(totals[0]);
        let at = output_offset(work, row0 + r, kv_head, groups.y);
        let factor = select(1.0 / total, 1.0, SPLIT == 1u);
        for (var p = 0u; p < HEAD_CHUNKS; p++) {
            if p * LANES + lane < HEAD4 {
                output[at + p * LANES + lane] = factor * sums[p][0];
            }
        }
        if SPLIT == 1u && lane == 0u {
            output[at + HEAD4] = vec4(maxima[0], total, 0.0, 0.0);
        }
        for (var next = 1u; next < ROWS; next++) {
            totals[next - 1u] = totals[next];
            maxima[next - 1u] = maxima[next];
            for (var p = 0u; p < HEAD_CHUNKS; p++) {
                sums[p][next - 1u] = sums[p][next];
            }
        }
    }
}
