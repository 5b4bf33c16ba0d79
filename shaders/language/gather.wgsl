// Rows of a table by number, quantised or not: y[i] = scale * table[ids[start + i]], or y[i] += that where `accumulate`
// is 1. Ids outside this shard of the table (first .. first + rows) belong to another shard: their rows are left
// unchanged. y [.., k]. Dispatch: (ceil(k / 256), ids folded over y and z); an invocation per four elements.
struct Params {
    count: u32,         // ids
    k: u32,
    weight_stride: u32, // length of a table row in fours
    first: u32,
    rows: u32,
    ids_start: u32,
    accumulate: u32,
    scale: f32,
}

@group(0) @binding(0) var<storage, read> ids: array<u32>;
@group(0) @binding(3) var<storage, read_write> output: array<f32>;
@group(0) @binding(4) var<uniform> params: Params;

@compute @workgroup_size(64)
fn gather(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
          @builtin(local_invocation_index) local: u32) {
    let k = params.k;
    let k4 = group.x * 64u + local;
    let row = group.y + group.z * groups.y;
    if 4u * k4 >= k || row >= params.count {
        return;
    }
    let id = ids[params.ids_start + row];
    if id < params.first || id - params.first >= params.rows {
        return;
    }
    let value = params.scale * weight4(id - params.first, k4, params.weight_stride);
    let at = row * k + 4u * k4;
    let accumulate = params.accumulate == 1u;
    for (var c = 0u; c < 4u; c++) {
        if 4u * k4 + c < k {
            output[at + c] = select(0.0, output[at + c], accumulate) + value[c];
        }
    }
}
