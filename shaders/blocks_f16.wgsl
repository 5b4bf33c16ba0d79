// Block reader: f16 (see weights_f16.wgsl), 32 columns of four neighbouring rows. Rows and columns past the end repeat the
// last ones: what they are multiplied with is zero, or what becomes of them is not stored.
@group(0) @binding(1) var<storage, read> weights: array<vec2<u32>>;

// What is loaded at a time, and how many columns are in it.
alias Word = vec4<u32>;
const PER_WORD: u32 = 2u;
var<private> words: array<Word, 16>; // component: row
const block_scale = vec4(1.0);
const block_offset = vec4(0.0);

// Loads columns 32 group .. 32 group + 31 of rows 4 row4 .. 4 row4 + 3; `stride` is the row length in fours.
fn load_block(row4: u32, group: u32, stride: u32, n: u32) {
    for (var i = 0u; i < 8u; i++) {
        let k4 = min(8u * group + i, stride - 1u);
        let w0 = weights[min(4u * row4, n - 1u) * stride + k4];
        let w1 = weights[min(4u * row4 + 1u, n - 1u) * stride + k4];
        let w2 = weights[min(4u * row4 + 2u, n - 1u) * stride + k4];
        let w3 = weights[min(4u * row4 + 3u, n - 1u) * stride + k4];
        words[2u * i] = vec4(w0.x, w1.x, w2.x, w3.x);
        words[2u * i + 1u] = vec4(w0.y, w1.y, w2.y, w3.y);
    }
}

// Column PER_WORD * word + i of the four rows, as it came in words[word]: a weight is block_scale * column + block_offset.
fn block_column(word: u32, loaded: Word, i: u32) -> vec4<f32> {
    return vec4(unpack2x16float(loaded.x)[i], unpack2x16float(loaded.y)[i],
                unpack2x16float(loaded.z)[i], unpack2x16float(loaded.w)[i]);
}
