// Read bandwidth of an adapter: every invocation adds up STEPS vec4s; neighbouring invocations read neighbouring vec4s.
// A workgroup is one subgroup on software adapters: they run subgroups one after the other, and a wider workgroup would
// read in strides.
// Dispatch: (vec4s / (WORKGROUP STEPS), folded over x and y).
override WORKGROUP: u32 = 64;
const STEPS: u32 = 64u;

@group(0) @binding(0) var<storage, read> input: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> output: array<u32>;

@compute @workgroup_size(WORKGROUP)
fn roofline_read(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                 @builtin(local_invocation_index) local: u32) {
    let block = group.x + group.y * groups.x;
    var sum = vec4(0u);
    for (var step = 0u; step < STEPS; step++) {
        sum += input[(block * STEPS + step) * WORKGROUP + local];
    }
    output[block * WORKGROUP + local] = sum.x + sum.y + sum.z + sum.w;
}
