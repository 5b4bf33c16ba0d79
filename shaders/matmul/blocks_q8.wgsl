// Block reader: q8 (see weights_q8.wgsl). 32 weights of four neighbouring rows are 128 contiguous bytes, their scales
// 8; eight such blocks of four rows follow each other.
@group(0) @binding(1) var<storage, read> weights: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> scales: array<vec2<u32>>;

// The unit of a load, and its number of columns.
alias Word = vec4<i32>;
const PER_WORD: u32 = 4u;
var<private> words: array<array<Word, 8>, BLOCKS>; // component: row
var<private> row_scales: array<vec4<f32>, BLOCKS>;

fn block_scale(b: u32) -> vec4<f32> {
    return row_scales[b];
}

fn block_offset(b: u32) -> vec4<f32> {
    return vec4(0.0);
}

// Loads columns 32 group .. 32 group + 31 of rows 4 row4 .. 4 row4 + 3 as block b of BLOCKS; `stride` is
// the row length in fours.
fn load_block(b: u32, row4: u32, group: u32, stride: u32, n: u32) {
    let at = 8u * ((row4 >> 3u) * (stride >> 3u) + group) + (row4 & 7u);
    let pairs = scales[at];
    row_scales[b] = vec4(unpack2x16float(pairs.x), unpack2x16float(pairs.y));
    for (var half = 0u; half < 2u; half++) {
        let w0 = weights[8u * at + half];
        let w1 = weights[8u * at + 2u + half];
        let w2 = weights[8u * at + 4u + half];
        let w3 = weights[8u * at + 6u + half];
        for (var word = 0u; word < 4u; word++) {
            words[b][4u * half + word] = bitcast<vec4<i32>>(vec4(w0[word], w1[word], w2[word], w3[word]));
        }
    }
}

// Column PER_WORD * word + i of block b, given words[b][word]: a weight is block_scale(b) * column + block_offset(b).
fn block_column(b: u32, word: u32, loaded: Word, i: u32) -> vec4<f32> {
    return vec4<f32>((loaded << vec4(24u - 8u * i)) >> vec4(24u));
}
