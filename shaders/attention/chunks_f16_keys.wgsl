// Keys and values in f16, keys in chunks of eight elements (two vec4s): a load of 16 bytes. Heads are multiples of
// eight.
const CHUNK: u32 = 2u;
alias Chunk = vec4<u32>;

@group(0) @binding(1) var<storage, read> keys: array<Chunk>;
@group(0) @binding(2) var<storage, read> values: array<vec2<u32>>;

fn key_chunk(i: u32) -> Chunk {
    return keys[i];
}

fn vector(chunk: Chunk, index: u32) -> vec4<f32> {
    return vec4(unpack2x16float(chunk[2u * index]), unpack2x16float(chunk[2u * index + 1u]));
}

fn value4(i: u32) -> vec4<f32> {
    return vec4(unpack2x16float(values[i].x), unpack2x16float(values[i].y));
}
