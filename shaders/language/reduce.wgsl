// Reductions over the workgroup of a sampling kernel. Every invocation must call them.

const WORKGROUP: u32 = 256u;

var<workgroup> values: array<f32, WORKGROUP>;
var<workgroup> numbers: array<u32, WORKGROUP>;

// The largest of the workgroup's values and its index; the lowest index wins ties.
fn reduce_best(value: f32, index: u32, local: u32) {
    values[local] = value;
    numbers[local] = index;
    workgroupBarrier();
    for (var step = WORKGROUP / 2u; step > 0u; step >>= 1u) {
        if local < step {
            let other = values[local + step];
            let other_index = numbers[local + step];
            if other > values[local] || (other == values[local] && other_index < numbers[local]) {
                values[local] = other;
                numbers[local] = other_index;
            }
        }
        workgroupBarrier();
    }
}

// The sum of the workgroup's values; all invocations receive it.
fn sum_values(value: f32, local: u32) -> f32 {
    workgroupBarrier();
    values[local] = value;
    workgroupBarrier();
    for (var step = WORKGROUP / 2u; step > 0u; step >>= 1u) {
        if local < step {
            values[local] += values[local + step];
        }
        workgroupBarrier();
    }
    let sum = values[0];
    workgroupBarrier();
    return sum;
}
