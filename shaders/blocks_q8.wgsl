// Block reader: q8 (see weights_q8.wgsl). 32 weights of each of four neighbouring rows are 128 bytes, their scales 8.
@group(0) @binding(1) var<storage, read> weights: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> scales: array<vec2<u32>>;

// What is loaded at a time, and how many columns are in it.
alias Word = vec4<i32>;
const PER_WORD: u32 = 4u;
var<private> words: array<Word, 8>; // component: row
var<private> block_scale: vec4<f32>;
const block_offset = vec4(0.0);

// Loads columns 32 group .. 32 group + 31 of rows 4 row4 .. 4 row4 + 3; `stride` is the row length in fours.
fn load_block(row4: u32, group: u32, stride: u32, n: u32) {
    let at = row4 * (stride >> 3u) + group;
    let pairs = scales[at];
    block_scale = vec4(unpack2x16float(pairs.x), unpack2x16float(pairs.y));
    for (var half = 0u; half < 2u; half++) {
        let w0 = weights[8u * at + half];
        let w1 = weights[8u * at + 2u + half];
        let w2 = weights[8u * at + 4u + half];
        let w3 = weights[8u * at + 6u + half];
        for (var word = 0u; word < 4u; word++) {
            words[4u * half + word] = bitcast<vec4<i32>>(vec4(w0[word], w1[word], w2[word], w3[word]));
        }
    }
}

// Column PER_WORD * word + i of the four rows, as it came in words[word]: a weight is block_scale * column + block_offset.
fn block_column(word: u32, loaded: Word, i: u32) -> vec4<f32> {
    return vec4<f32>((loaded << vec4(24u - 8u * i)) >> vec4(24u));
}
