// Combines the partial results of split attention (SPLIT 1): rescales each split's sums to the common maximum and
// divides. Dispatch: one invocation per (row, kv head, vec4 of the head), 64 per workgroup, folded over x and y.
struct Params {
    rows: u32,     // query_len * group
    kv_heads: u32,
    group: u32,
    splits: u32,   // splits_of: one number for all rows, or where their numbers begin
}

override HEAD4: u32 = 16;

@group(0) @binding(0) var<storage, read> splits: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> output: array<vec4<f32>>;

@compute @workgroup_size(64)
fn attention_combine(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                   @builtin(local_invocation_index) local: u32) {
    let i = (group.x + group.y * groups.x) * 64u + local;
    let pairs = params.rows * params.kv_heads;
    if i >= pairs * HEAD4 {
        return;
    }
    let pair = i / HEAD4;
    let column = i % HEAD4;
    let row = pair / params.kv_heads;
    let count = splits_of(row / params.group);
    var maximum = -3.0e38;
    for (var split = 0u; split < count; split++) {
        maximum = max(maximum, splits[(split * pairs + pair) * (HEAD4 + 1u) + HEAD4].x);
    }
    var sum = vec4(0.0);
    var denominator = 0.0;
    for (var split = 0u; split < count; split++) {
        let at = (split * pairs + pair) * (HEAD4 + 1u);
        let factor = exp(splits[at + HEAD4].x - maximum);
        sum += factor * splits[at + column];
        denominator += factor * splits[at + HEAD4].y;
    }
    let head = (pair % params.kv_heads) * params.group + row % params.group;
    let at = ((row / params.group) * params.kv_heads * params.group + head) * HEAD4 + column;
    output[at] = sum / denominator;
}
