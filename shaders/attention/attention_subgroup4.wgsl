// Attention with online softmax (see attention_common.wgsl) for software adapters with subgroups of four, for many rows
// and unsplit keys. As in matmul_subgroup4.wgsl there is no barrier, and the subgroup loads what all its invocations
// need once: an invocation computes four rows by eight keys, of which it loads two. Vectors over rows have a component
// for each of the four. HEAD4 is the length of an array.
const LANES: u32 = 16u;

struct Keys {
    k0: vec4<f32>, k1: vec4<f32>, k2: vec4<f32>, k3: vec4<f32>, k4: vec4<f32>, k5: vec4<f32>, k6: vec4<f32>, k7: vec4<f32>,
}

// The scores of a key for the rows that see it; `last` is the last key that each sees. (Vectors are compared as a
// whole: with a branch for every component SwiftShader's compiler takes minutes.)
fn masked(score: vec4<f32>, key: u32, last: vec4<u32>) -> vec4<f32> {
    return select(vec4(LOWEST), params.scale * score, vec4(key) <= last);
}

// Scores of four rows against one key, four dimensions of the head.
fn dots(q: mat4x4<f32>, k: vec4<f32>) -> vec4<f32> {
    return vec4(dot(q[0], k), dot(q[1], k), dot(q[2], k), dot(q[3], k));
}

@compute @workgroup_size(LANES)
fn attention_subgroup4(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                       @builtin(local_invocation_index) local: u32,
                       @builtin(subgroup_invocation_id) lane: u32) {
    let kv_head = group.y;
    let work = work_of(group);
    let last_row = query_rows(work) - 1u;
    let rows = min(vec4(4u * (work.block * LANES + local)) + vec4(0u, 1u, 2u, 3u), vec4(last_row));
    // The same for the whole workgroup.
    let range = key_range(work, min(4u * LANES * (work.block + 1u) - 1u, last_row));
    let last_key = range.y - 1u;
    let attended = select(vec4(last_key), min(first_position(work) + rows / params.group, vec4(last_key)), CAUSAL == 1u);
    let q0 = query_offset(work, rows.x, kv_head);
    let q1 = query_offset(work, rows.y, kv_head);
    let q2 = query_offset(work, rows.z, kv_head);
    let q3 = query_offset(work, rows.w, kv_head);
    let key_start = params.key_start + kv_head * HEAD4;
    let value_start = params.value_start + kv_head * HEAD4;
    var sums: array<vec4<f32>, 4u * HEAD4>;
    var maximum = vec4(LOWEST);
    var total = vec4(0.0);
    for (var block = range.x; block < range.y; block += 8u) {
        let low = min(block + lane, last_key) * params.key_stride;
        let high = min(block + 4u + lane, last_key) * params.key_stride;
        var s = Keys();
        for (var c = 0u; c < HEAD4; c++) {
            let q = mat4x4(queries[q0 + c], queries[q1 + c], queries[q2 + c], queries[q3 + c]);
            let at = key_start + c;
            let k = key4(at + low);
            s.k0 += dots(q, subgroupBroadcast(k, 0u));
            s.k1 += dots(q, subgroupBroadcast(k, 1u));
            s.k2 += dots(q, subgroupBroadcast(k, 2u));
            s.k3 += dots(q, subgroupBroadcast(k, 3u));
            let l = key4(at + high);
            s.k4 += dots(q, subgroupBroadcast(l, 0u));
            s.k5 += dots(q, subgroupBroadcast(l, 1u));
            s.k6 += dots(q, subgroupBroadcast(l, 2u));
            s.k7 += dots(q, subgroupBroadcast(l, 3u));
        }
        s.k0 = masked(s.k0, block, attended);
        s.k1 = masked(s.k1, block + 1u, attended);
        s.k2 = masked(s.k2, block + 2u, attended);
        s.k3 = masked(s.k3, block + 3u, attended);
        s.k4 = masked(s.k4, block + 4u, attended);
        s.k5 = masked(s.k5, block + 5u, attended);
        s.k6 = masked(s.k6, block + 6u, attended);
        s.k7 = masked(s.k7, block + 7u, attended);
        let larger = max(maximum, max(max(max(s.k0, s.k1), max(s.k2, s.k3)), max(max(s.k4, s.k5), max(s.k6, s.k7))));
        let factor = exp(maximum - larger);
        maximum = larger;
        s.k0 = exp(s.k0 - larger);
        s.k1 = exp(s.k1 - larger);
        s.k2 = exp(s.k2 - larger);
        s.k3 = exp(s.k3 - larger);
        s.k4 = exp(s.k4 - larger);
        s.k5 = exp(s.k5 - larger);
        s.k6 = exp(s.k6 - larger);
        s.k7 = exp(s.k7 - larger);
        total = fma(total, factor, ((s.k0 + s.k1) + (s.k2 + s.k3)) + ((s.k4 + s.k5) + (s.k6 + s.k7)));
        // Keys past the end have a probability of 0. Value rows are as far apart as key rows.
        for (var c = 0u; c < HEAD4; c++) {
            let at = value_start + c;
            let v = value4(at + low);
            let w = value4(at + high);
            let v0 = subgroupBroadcast(v, 0u);
            let v1 = subgroupBroadcast(v, 1u);
            let v2 = subgroupBroadcast(v, 2u);
            let v3 = subgroupBroadcast(v, 3u);
            let v4 = subgroupBroadcast(w, 0u);
            let v5 = subgroupBroadcast(w, 1u);
            let v6 = subgroupBroadcast(w, 2u);
            let v7 = subgroupBroadcast(w, 3u);
            sums[4u * c] = factor.x * sums[4u * c]
                + ((s.k0.x * v0 + s.k1.x * v1) + (s.k2.x * v2 + s.k3.x * v3))
                + ((s.k4.x * v4 + s.k5.x * v5) + (s.k6.x * v6 + s.k7.x * v7));
            sums[4u * c + 1u] = factor.y * sums[4u * c + 1u]
                + ((s.k0.y * v0 + s.k1.y * v1) + (s.k2.y * v2 + s.k3.y * v3))
                + ((s.k4.y * v4 + s.k5.y * v5) + (s.k6.y * v6 + s.k7.y * v7));
            sums[4u * c + 2u] = factor.z * sums[4u * c + 2u]
                + ((s.k0.z * v0 + s.k1.z * v1) + (s.k2.z * v2 + s.k3.z * v3))
                + ((s.k4.z * v4 + s.k5.z * v5) + (s.k6.z * v6 + s.k7.z * v7));
            sums[4u * c + 3u] = factor.w * sums[4u * c + 3u]
                + ((s.k0.w * v0 + s.k1.w * v1) + (s.k2.w * v2 + s.k3.w * v3))
                + ((s.k4.w * v4 + s.k5.w * v5) + (s.k6.w * v6 + s.k7.w * v7));
        }
    }
    for (var r = 0u; r < 4u; r++) {
        let row = 4u * (work.block * LANES + local) + r;
        if row <= last_row {
            let at = output_offset(work, row, kv_head, groups.y);
            for (var c = 0u; c < HEAD4; c++) {
                output[at + c] = sums[4u * c + r] / total[r];
            }
        }
    }
}
