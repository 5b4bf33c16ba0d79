// Keys and values in f32, staged in f16. Heads are multiples of eight.
@group(0) @binding(1) var<storage, read> keys: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> values: array<vec4<f32>>;

alias Four = vec4<f32>;

// Eight elements of a key. Offsets are in vec4s.
struct Run {
    a: vec4<f32>,
    b: vec4<f32>,
}

fn load_key_run(at: u32) -> Run {
    return Run(keys[at], keys[at + 1u]);
}

fn run_four(run: Run, index: u32) -> vec4<f16> {
    return stage(select(run.a, run.b, index == 1u));
}

fn load_value(at: u32) -> Four {
    return values[at];
}

fn value_four(four: Four) -> vec4<f16> {
    return stage(four);
}
