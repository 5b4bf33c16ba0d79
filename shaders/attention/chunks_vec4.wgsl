// Chunks of one vec4, from `key4` and `value4`.
const CHUNK: u32 = 1u;
alias Chunk = vec4<f32>;

fn key_chunk(i: u32) -> Chunk {
    return key4(i);
}

fn value_chunk(i: u32) -> Chunk {
    return value4(i);
}

fn vector(chunk: Chunk, index: u32) -> vec4<f32> {
    return chunk;
}
