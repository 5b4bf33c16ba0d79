// Measures an adapter's multiply-add rate: each invocation runs two independent vec4 fma chains of 16 x STEPS steps in
// registers. Dispatch: (invocations / 64, folded over x and y).
const STEPS: u32 = 256u;

struct Params {
    factor: f32, // not a compile-time constant
}

@group(0) @binding(0) var<storage, read_write> output: array<f32>;
@group(0) @binding(1) var<uniform> params: Params;

@compute @workgroup_size(64)
fn roofline_fma(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                @builtin(local_invocation_index) local: u32) {
    let x = vec4(params.factor);
    // Not the uniform itself: NVIDIA's instructions take one operand from constant memory, and Mesa's compiler moves a
    // second one into a register each time.
    let y = vec4(f32(local) + params.factor);
    var a = vec4(f32(local));
    var b = a + 1.0;
    for (var step = 0u; step < STEPS; step++) {
        for (var inner = 0u; inner < 16u; inner++) {
            a = fma(a, x, y);
            b = fma(b, x, y);
        }
    }
    let total = a + b;
    output[(group.x + group.y * groups.x) * 64u + local] = total.x + total.y + total.z + total.w;
}
