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

// What 32 weights of a row share, as it is stored.
struct StoredScales {
    words: vec3<u32>,
    // The group's number in its superblock, and in bit 3 the f16 of a word.
    place: u32,
}

fn load_scales(row: u32, group: u32, stride: u32) -> StoredScales {
    let at = span_at(row, group, stride);
    let first = at + 32u * SPAN * HIGH_WORDS;
    let within = group % SPAN;
    var stored: StoredScales;
    stored.place = within | ((row & 1u) << 3u);
    if SCALE_HALVES == 1u {
        stored.words.x = scales[at - (row & 31u) + 32u * ALL_WORDS + ((row & 31u) >> 1u)];
    }
    if SPAN == 1u && SCALE_WORDS == 1u {
        stored.words.x = scales[first];
    }
    if SPAN == 8u && BITS == 6u {
        stored.words.y = scales[first + 32u * (within >> 1u)];
    }
    if SPAN == 8u && BITS < 6u {
        stored.words.x = scales[first];
        stored.words.y = scales[first + 32u + 32u * (within >> 2u)];
        stored.words.z = scales[first + 96u];
    }
    return stored;
}

// The f16 that a row and its neighbour have in one word.
fn half_scale(stored: StoredScales) -> f32 {
    return unpack2x16float(stored.words.x >> (2u * (stored.place & 8u))).x;
}

// Scale and minimum, weight = minimum + scale * q; or, for 6 bits, the scales of the group's halves, weight = scale *
// (q - 32).
fn unpacked_scales(stored: StoredScales) -> vec2<f32> {
    let within = stored.place & 7u;
    if SPAN == 8u && BITS == 6u {
        let pair = bitcast<vec2<i32>>(vec2(stored.words.y << (16u - 16u * (within & 1u))) << vec2(8u, 0u)) >> vec2(24u);
        return half_scale(stored) * vec2<f32>(pair);
    }
    if SPAN == 8u {
        let units = unpack2x16float(stored.words.x);
        let low = stored.words.y >> (8u * (within & 3u));
        let minimum = ((low >> 6u) & 3u) | (((stored.words.z >> (4u * within)) & 15u) << 2u);
        return vec2(units.x * f32(low & 63u), -(units.y * f32(minimum)));
    }
    if SCALE_WORDS == 0u {
        let scale = half_scale(stored);
        return vec2(scale, -f32(1u << (BITS - 1u)) * scale);
    }
    return unpack2x16float(stored.words.x);
}
