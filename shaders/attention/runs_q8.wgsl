// Keys and values of 8 bits (after values_q8.wgsl), staged in f16. Heads are multiples of eight.
alias Run = vec2<u32>;       // eight elements of a key: a load of 8 bytes
alias Four = u32;

@group(0) @binding(1) var<storage, read> keys: array<Run>;
@group(0) @binding(2) var<storage, read> values: array<Four>;

// Offsets are in fours.
fn load_key_run(at: u32) -> Run {
    return keys[at >> 1u];
}

fn run_four(run: Run, index: u32) -> vec4<f16> {
    return stage(unpacked(run[index]));
}

fn load_value(at: u32) -> Four {
    return values[at];
}

fn value_four(four: Four) -> vec4<f16> {
    return stage(unpacked(four));
}
