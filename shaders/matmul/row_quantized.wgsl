// Row reader: integers of BITS bits, 4 to 6 (after scales_quantized.wgsl), 32 columns of a row.
@group(0) @binding(1) var<storage, read> weights: array<vec4<u32>>;

// A row's group as it is stored: the low bits, the high bits, and the scales.
struct RowGroup {
    low: vec4<u32>,
    high: vec2<u32>,
    scale: vec2<u32>,
}

fn load_row_group(row: u32, group: u32, stride: u32) -> RowGroup {
    var loaded: RowGroup;
    loaded.low = weights[32u * ((row >> 5u) * (stride >> 3u) + group) + (row & 31u)];
    if BITS >= 5u {
        loaded.high.x = high_word(row, group, stride, 0u);
    }
    if BITS == 6u {
        loaded.high.y = high_word(row, group, stride, 1u);
    }
    loaded.scale = load_scales(row, group, stride);
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

// The scales of the group's halves.
fn group_scales(loaded: RowGroup) -> vec2<f32> {
    let stored = unpacked_scales(loaded.scale);
    if BITS == 6u {
        return stored;
    }
    return vec2(stored.x);
}

// What is added to the halves' weights after that.
fn group_offsets(loaded: RowGroup) -> vec2<f32> {
    let stored = unpacked_scales(loaded.scale);
    if BITS == 6u {
        return -32.0 * stored;
    }
    return vec2(stored.y);
}

// Scales of the group's halves, then their offsets.
alias RowScales = vec4<f32>;

fn row_scales(loaded: RowGroup) -> RowScales {
    return vec4(group_scales(loaded), group_offsets(loaded));
}

// Weights of columns 4 j .. 4 j + 3; j < 8.
fn scaled_columns4(loaded: RowGroup, scales: RowScales, j: u32) -> vec4<f32> {
    return fma(vec4(scales[j >> 2u]), group_columns4(loaded, j), vec4(scales[2u + (j >> 2u)]));
}
