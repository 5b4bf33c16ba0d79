// Keys and values of 8 bits (after values_q8.wgsl), keys in chunks of eight elements (two vec4s): a load of 8 bytes.
// Heads are multiples of eight.
const CHUNK: u32 = 2u;
alias Chunk = vec2<u32>;

@group(0) @binding(1) var<storage, read> keys: array<Chunk>;
@group(0) @binding(2) var<storage, read> values: array<u32>;

fn key_chunk(i: u32) -> Chunk {
    return keys[i];
}

fn vector(chunk: Chunk, index: u32) -> vec4<f32> {
    return unpacked(chunk[index]);
}

fn value4(i: u32) -> vec4<f32> {
    return unpacked(values[i]);
}
