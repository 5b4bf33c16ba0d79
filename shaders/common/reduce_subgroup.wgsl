// Reductions over a workgroup of WORKGROUP invocations (see reduce_workgroup.wgsl): within each subgroup first, then
// between subgroups through workgroup memory, with two barriers in all. This assumes that subgroups are runs of
// neighbouring invocations of one length, as on every known device; a device where they are not fails its self-check.
override WORKGROUP: u32 = 64;
var<workgroup> reduce_scratch: array<vec4<f32>, WORKGROUP>;

fn workgroup_sum4(value: vec4<f32>, local: u32) -> vec4<f32> {
    let lanes = subgroupAdd(1u);
    reduce_scratch[local] = subgroupAdd(value);
    workgroupBarrier();
    var sum = vec4(0.0);
    for (var first = 0u; first < WORKGROUP; first += lanes) {
        sum += reduce_scratch[first];
    }
    workgroupBarrier();
    return sum;
}
