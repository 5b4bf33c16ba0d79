// Block reader: f32 (see weights_f32.wgsl), 32 columns of four neighbouring rows. Rows and columns past the end repeat
// the last ones: they are multiplied by zero, or their results are not stored.
@group(0) @binding(1) var<storage, read> weights: array<vec4<f32>>;

// The unit of a load, and its number of columns.
alias Word = mat4x4<f32>;
const PER_WORD: u32 = 4u;
var<private> words: array<array<Word, 8>, BLOCKS>; // columns: columns, rows: rows

fn block_scale(b: u32) -> vec4<f32> {
    return vec4(1.0);
}

fn block_offset(b: u32) -> vec4<f32> {
    return vec4(0.0);
}

// Loads columns 32 group .. 32 group + 31 of rows 4 row4 .. 4 row4 + 3 as block b of BLOCKS; `stride` is
// the row length in fours.
fn load_block(b: u32, row4: u32, group: u32, stride: u32, n: u32) {
    for (var word = 0u; word < 8u; word++) {
        let k4 = min(8u * group + word, stride - 1u);
        words[b][word] = transpose(mat4x4(
            weights[min(4u * row4, n - 1u) * stride + k4],
            weights[min(4u * row4 + 1u, n - 1u) * stride + k4],
            weights[min(4u * row4 + 2u, n - 1u) * stride + k4],
            weights[min(4u * row4 + 3u, n - 1u) * stride + k4]));
    }
}

// Column PER_WORD * word + i of block b, given words[b][word]: a weight is block_scale(b) * column + block_offset(b).
fn block_column(b: u32, word: u32, loaded: Word, i: u32) -> vec4<f32> {
    return loaded[i];
}
