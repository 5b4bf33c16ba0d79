// Block reader: integers of BITS bits, 4 to 6 (see weights_quantized.wgsl; scales_quantized.wgsl has the constants).
// 32 weights of four neighbouring rows are 64 contiguous bytes, a word of scales or high bits of each is 16; eight such
// blocks of four rows follow each other.
@group(0) @binding(1) var<storage, read> weights: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> scales: array<vec4<u32>>;

const HIGH_WORDS: u32 = BITS - 4u;
const ALL_WORDS: u32 = SPAN * HIGH_WORDS + SCALE_WORDS;
const SPAN_UNITS: u32 = 2u * ALL_WORDS + SCALE_HALVES; // of 16 words

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
    let span = 4u * SPAN_UNITS * ((row4 >> 3u) * (stride / (8u * SPAN)) + group / SPAN);
    let within = group % SPAN;
    let high_at = span + 8u * HIGH_WORDS * within + (row4 & 7u);
    let scales_at = span + 8u * SPAN * HIGH_WORDS + (row4 & 7u); // and every eighth from there
    let w0 = weights[4u * at];
    let w1 = weights[4u * at + 1u];
    let w2 = weights[4u * at + 2u];
    let w3 = weights[4u * at + 3u];
    for (var word = 0u; word < 4u; word++) {
        words[b][word] = vec4(w0[word], w1[word], w2[word], w3[word]);
    }
    if BITS == 5u {
        let bits = scales[high_at];
        for (var word = 0u; word < 4u; word++) {
            high[b][word] = bits >> vec4(8u * word);
        }
    }
    if BITS == 6u {
        for (var word = 0u; word < 4u; word++) {
            high[b][word] = scales[high_at + 8u * (word >> 1u)] >> vec4(16u * (word & 1u));
        }
    }
    var halves = vec4(0.0);
    if SCALE_HALVES == 1u {
        let pairs = scales[span + 8u * ALL_WORDS + ((row4 & 7u) >> 1u)];
        let pair = select(pairs.xy, pairs.zw, (row4 & 1u) == 1u);
        halves = vec4(unpack2x16float(pair.x), unpack2x16float(pair.y));
    }
    if SPAN == 8u && BITS == 6u {
        let pair = scales[scales_at + 8u * (within >> 1u)] << vec4(16u - 16u * (within & 1u));
        first[b] = halves * vec4<f32>(bitcast<vec4<i32>>(pair << vec4(8u)) >> vec4(24u));
        second[b] = halves * vec4<f32>(bitcast<vec4<i32>>(pair) >> vec4(24u));
    } else if SPAN == 8u {
        let low = scales[scales_at + 8u + 8u * (within >> 2u)] >> vec4(8u * (within & 3u));
        let high = scales[scales_at + 24u] >> vec4(4u * within);
        let units = unpacked_pairs(scales[scales_at]);
        first[b] = units[0] * vec4<f32>(vec4<i32>(low & vec4(63u)));
        second[b] = -units[1] * vec4<f32>(vec4<i32>(((low >> vec4(6u)) & vec4(3u)) | ((high & vec4(15u)) << vec4(2u))));
    } else if SCALE_WORDS == 0u {
        first[b] = halves;
        second[b] = -f32(1u << (BITS - 1u)) * halves;
    } else {
        let pairs = unpacked_pairs(scales[scales_at]);
        first[b] = pairs[0];
        second[b] = pairs[1];
    }
}

// The low f16 of four words, and the high ones.
fn unpacked_pairs(pairs: vec4<u32>) -> array<vec4<f32>, 2> {
    let s0 = unpack2x16float(pairs.x);
    let s1 = unpack2x16float(pairs.y);
    let s2 = unpack2x16float(pairs.z);
    let s3 = unpack2x16float(pairs.w);
    return array(vec4(s0.x, s1.x, s2.x, s3.x), vec4(s0.y, s1.y, s2.y, s3.y));
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
