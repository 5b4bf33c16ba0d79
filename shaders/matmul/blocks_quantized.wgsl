// Block reader: integers of BITS bits, 4 to 6 (see weights_quantized.wgsl). 32 weights of four neighbouring rows are 64
// contiguous bytes, a word of scales or high bits of each is 16; eight such blocks of four rows follow each other.
@group(0) @binding(1) var<storage, read> weights: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> scales: array<vec4<u32>>;

const HIGH_WORDS: u32 = BITS - 4u;
const WORDS: u32 = HIGH_WORDS + 1u + WIDE;

// The unit of a load, and its number of columns.
alias Word = vec4<u32>;
const PER_WORD: u32 = 8u;
var<private> words: array<array<Word, 4>, BLOCKS>; // component: row
var<private> high: array<array<vec4<u32>, 4>, BLOCKS>; // the high bits of each word's columns, from the low end
// Scale and minimum of each row, or the scales of the halves.
var<private> first: array<vec4<f32>, BLOCKS>;
var<private> second: array<vec4<f32>, BLOCKS>;

// A group of 6 bits has two scales, which are in the columns already.
fn block_scale(b: u32) -> vec4<f32> {
    return select(first[b], vec4(1.0), BITS == 6u);
}

fn block_offset(b: u32) -> vec4<f32> {
    return select(second[b], vec4(0.0), BITS == 6u);
}

// Loads columns 32 group .. 32 group + 31 of rows 4 row4 .. 4 row4 + 3 as block b of BLOCKS; `stride` is
// the row length in fours.
fn load_block(b: u32, row4: u32, group: u32, stride: u32, n: u32) {
    let block = (row4 >> 3u) * (stride >> 3u) + group;
    let at = 8u * block + (row4 & 7u);
    let scale_word = 8u * WORDS * block + (row4 & 7u); // and every eighth from there
    let w0 = weights[4u * at];
    let w1 = weights[4u * at + 1u];
    let w2 = weights[4u * at + 2u];
    let w3 = weights[4u * at + 3u];
    for (var word = 0u; word < 4u; word++) {
        words[b][word] = vec4(w0[word], w1[word], w2[word], w3[word]);
    }
    if BITS == 5u {
        let bits = scales[scale_word];
        for (var word = 0u; word < 4u; word++) {
            high[b][word] = bits >> vec4(8u * word);
        }
    }
    if BITS == 6u {
        for (var word = 0u; word < 4u; word++) {
            high[b][word] = scales[scale_word + 8u * (word >> 1u)] >> vec4(16u * (word & 1u));
        }
    }
    if WIDE == 1u {
        first[b] = bitcast<vec4<f32>>(scales[scale_word + 8u * HIGH_WORDS]);
        second[b] = bitcast<vec4<f32>>(scales[scale_word + 8u * (WORDS - 1u)]);
    } else {
        let pairs = scales[scale_word + 8u * HIGH_WORDS];
        let s0 = unpack2x16float(pairs.x);
        let s1 = unpack2x16float(pairs.y);
        let s2 = unpack2x16float(pairs.z);
        let s3 = unpack2x16float(pairs.w);
        first[b] = vec4(s0.x, s1.x, s2.x, s3.x);
        second[b] = vec4(s0.y, s1.y, s2.y, s3.y);
    }
}

// Column PER_WORD * word + i of block b, given words[b][word]: a weight is block_scale(b) * column + block_offset(b).
fn block_column(b: u32, word: u32, loaded: Word, i: u32) -> vec4<f32> {
    var q = (loaded >> vec4(4u * i)) & vec4(15u);
    if BITS == 5u {
        q |= ((high[b][word] >> vec4(i)) & vec4(1u)) << vec4(4u);
    }
    if BITS == 6u {
        q |= ((high[b][word] >> vec4(2u * i)) & vec4(3u)) << vec4(4u);
        return select(first[b], second[b], word >= 2u) * vec4<f32>(vec4<i32>(q) - vec4(32));
    }
    // Small numbers: the conversion of signed ones is the cheaper one.
    return vec4<f32>(vec4<i32>(q));
}
