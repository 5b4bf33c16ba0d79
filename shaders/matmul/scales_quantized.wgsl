// Scales and high bits of the integers of 4 to 6 bits, word by word (src/tensor/pack.rs has the layouts). SPAN groups of
// a row store theirs together: 1, or the 8 of a superblock. BITS - 4 words of high bits for each group come first, then
// SCALE_WORDS words, then SCALE_HALVES f16 (0 or 1). Words and f16 are interleaved by 32 rows.
// `stride` is the row length in fours, a multiple of 8 SPAN. BITS and what begins with S are constants of the
// specialisation.
@group(0) @binding(2) var<storage, read> scales: array<u32>;

const HIGH_WORDS: u32 = BITS - 4u;
const ALL_WORDS: u32 = SPAN * HIGH_WORDS + SCALE_WORDS;
// In units of 16 words: a word of 32 rows is 2, an f16 of 32 rows 1.
const SPAN_UNITS: u32 = 2u * ALL_WORDS + SCALE_HALVES;

// The place of the first word of a row's superblock (or group).
fn span_at(row: u32, group: u32, stride: u32) -> u32 {
    return 16u * SPAN_UNITS * ((row >> 5u) * (stride / (8u * SPAN)) + group / SPAN) + (row & 31u);
}

// A word of high bits.
fn high_word(row: u32, group: u32, stride: u32, word: u32) -> u32 {
    return scales[span_at(row, group, stride) + 32u * (HIGH_WORDS * (group % SPAN) + word)];
}

// What 32 weights of a row share, in few registers: a word, or an f16 in its low half; and the 12 bits of a scale and a
// minimum, or two i8.
fn load_scales(row: u32, group: u32, stride: u32) -> vec2<u32> {
    let at = span_at(row, group, stride);
    let first = at + 32u * SPAN * HIGH_WORDS;
    let within = group % SPAN;
    var stored: vec2<u32>;
    if SCALE_HALVES == 1u {
        stored.x = scales[at - (row & 31u) + 32u * ALL_WORDS + ((row & 31u) >> 1u)] >> (16u * (row & 1u));
    } else {
        stored.x = scales[first];
    }
    if SPAN == 8u && BITS == 6u {
        stored.y = scales[first + 32u * (within >> 1u)] >> (16u * (within & 1u));
    }
    if SPAN == 8u && BITS < 6u {
        let low = scales[first + 32u + 32u * (within >> 2u)] >> (8u * (within & 3u));
        stored.y = (low & 255u) | (((scales[first + 96u] >> (4u * within)) & 15u) << 8u);
    }
    return stored;
}

// Scale and minimum, weight = minimum + scale * q; or, for 6 bits, the scales of the group's halves, weight = scale *
// (q - 32).
fn unpacked_scales(stored: vec2<u32>) -> vec2<f32> {
    let pair = unpack2x16float(stored.x);
    if SPAN == 8u && BITS == 6u {
        return pair.x * vec2<f32>(bitcast<vec2<i32>>(vec2(stored.y) << vec2(24u, 16u)) >> vec2(24u));
    }
    if SPAN == 8u {
        return vec2(pair.x * f32(stored.y & 63u), -(pair.y * f32(stored.y >> 6u)));
    }
    if SCALE_WORDS == 0u {
        return vec2(pair.x, -f32(1u << (BITS - 1u)) * pair.x);
    }
    return pair;
}
