// Row reader: integers of BITS bits, 4 to 6 (see weights_quantized.wgsl), 32 columns of a row.
@group(0) @binding(1) var<storage, read> weights: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> scales: array<u32>;

const HIGH_WORDS: u32 = BITS - 4u;
const WORDS: u32 = HIGH_WORDS + 1u + WIDE;

// A row's group as it is stored: the low bits, the high bits, and the scales.
struct RowGroup {
    low: vec4<u32>,
    high: vec2<u32>,
    scale: vec2<u32>,
}

fn load_row_group(row: u32, group: u32, stride: u32) -> RowGroup {
    let block = (row >> 5u) * (stride >> 3u) + group;
    let word = 32u * WORDS * block + (row & 31u);
    var loaded: RowGroup;
    loaded.low = weights[32u * block + (row & 31u)];
    if BITS >= 5u {
        loaded.high.x = scales[word];
    }
    if BITS == 6u {
        loaded.high.y = scales[word + 32u];
    }
    loaded.scale.x = scales[word + 32u * HIGH_WORDS];
    if WIDE == 1u {
        loaded.scale.y = scales[word + 32u * (WORDS - 1u)];
    }
    return loaded;
}

// Columns 4 j .. 4 j + 3 as they are to be multiplied by group_scales; j < 8.
fn group_columns4(loaded: RowGroup, j: u32) -> vec4<f32> {
    let low = loaded.low[j >> 1u];
    if BITS == 4u {
        // Conversions of bytes are one instruction on most GPUs.
        let even = low & 0x0F0F0F0Fu;
        let odd = (low >> 4u) & 0x0F0F0F0Fu;
        let shift = 16u * (j & 1u);
        return vec4(f32((even >> shift) & 0xFFu), f32((odd >> shift) & 0xFFu),
                    f32((even >> (shift + 8u)) & 0xFFu), f32((odd >> (shift + 8u)) & 0xFFu));
    }
    var q = (vec4(low) >> vec4(vec4(0u, 4u, 8u, 12u) + 16u * (j & 1u))) & vec4(15u);
    if BITS == 5u {
        q |= ((vec4(loaded.high.x) >> vec4(vec4(0u, 1u, 2u, 3u) + 4u * j)) & vec4(1u)) << vec4(4u);
    }
    if BITS == 6u {
        q |= ((vec4(loaded.high[j >> 2u]) >> vec4(vec4(0u, 2u, 4u, 6u) + 8u * (j & 3u))) & vec4(3u)) << vec4(4u);
    }
    return vec4<f32>(vec4<i32>(q));
}

fn stored_scales(loaded: RowGroup) -> vec2<f32> {
    if WIDE == 1u {
        return bitcast<vec2<f32>>(loaded.scale);
    }
    return unpack2x16float(loaded.scale.x);
}

// The scales of the group's halves.
fn group_scales(loaded: RowGroup) -> vec2<f32> {
    let stored = stored_scales(loaded);
    if BITS == 6u {
        return stored;
    }
    return vec2(stored.x);
}

// What is added to the halves' weights after that.
fn group_offsets(loaded: RowGroup) -> vec2<f32> {
    let stored = stored_scales(loaded);
    if BITS == 6u {
        return -32.0 * stored;
    }
    return vec2(stored.y);
}
