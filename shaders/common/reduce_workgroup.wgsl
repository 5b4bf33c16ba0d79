// Reductions over a workgroup of WORKGROUP invocations through workgroup memory. Every invocation must call them; all
// receive the result.
override WORKGROUP: u32 = 64;
var<workgroup> reduce_scratch: array<vec4<f32>, WORKGROUP>;
var<workgroup> reduce_scalars: array<f32, WORKGROUP>;

fn workgroup_sum4(value: vec4<f32>, local: u32) -> vec4<f32> {
    reduce_scratch[local] = value;
    workgroupBarrier();
    for (var step = WORKGROUP / 2u; step > 0u; step >>= 1u) {
        if local < step {
            reduce_scratch[local] += reduce_scratch[local + step];
        }
        workgroupBarrier();
    }
    let sum = reduce_scratch[0];
    workgroupBarrier();
    return sum;
}

fn workgroup_sum(value: f32, local: u32) -> f32 {
    reduce_scalars[local] = value;
    workgroupBarrier();
    for (var step = WORKGROUP / 2u; step > 0u; step >>= 1u) {
        if local < step {
            reduce_scalars[local] += reduce_scalars[local + step];
        }
        workgroupBarrier();
    }
    let sum = reduce_scalars[0];
    workgroupBarrier();
    return sum;
}
