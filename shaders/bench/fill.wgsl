// Seeded random weights made on the device, for benches at full size: random bits masked to what the format can hold.
//     word = (random & mask) | base
// Dispatch: one invocation per word, 64 per workgroup, folded over x and y.
struct Params {
    words: u32,
    seed: u32,
    mask: u32,
    base: u32,
}

@group(0) @binding(0) var<storage, read_write> output: array<u32>;
@group(0) @binding(1) var<uniform> params: Params;

// PCG-RXS-M-XS (Jarzynski and Olano, Hash Functions for GPU Rendering, 2020).
fn random(seed: u32) -> u32 {
    let state = seed * 747796405u + 2891336453u;
    let word = ((state >> ((state >> 28u) + 4u)) ^ state) * 277803737u;
    return (word >> 22u) ^ word;
}

@compute @workgroup_size(64)
fn fill(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) local: u32) {
    let i = (group.x + group.y * groups.x) * 64u + local;
    if i < params.words {
        output[i] = (random(i ^ random(params.seed)) & params.mask) | params.base;
    }
}
