// Block reader: f16 (see weights_f16.wgsl), 32 columns of four neighbouring rows. Rows and columns past the end repeat
// the last ones: they are multiplied by zero, or their results are not stored.
@group(0) @binding(1) var<storage, read> weights: array<vec4<u32>>;

// The unit of a load, and its number of columns.
alias Word = vec4<u32>;
const PER_WORD: u32 = 2u;
var<private> words: array<array<Word, 16>, BLOCKS>; // component: row

fn block_scale(b: u32) -> vec4<f32> {
    return vec4(1.0);
}

fn block_offset(b: u32) -> vec4<f32> {
    return vec4(0.0);
}

// Loads columns 32 group .. 32 group + 31 of rows 4 row4 .. 4 row4 + 3 as block b of BLOCKS; `stride` is
// the row length in fours, an even number.
fn load_block(b: u32, row4: u32, group: u32, stride: u32, n: u32) {
    let eights = stride >> 1u;
    for (var i = 0u; i < 4u; i++) {
        let k8 = min(4u * group + i, eights - 1u);
        let w0 = weights[min(4u * row4, n - 1u) * eights + k8];
        let w1 = weights[min(4u * row4 + 1u, n - 1u) * eights + k8];
        let w2 = weights[min(4u * row4 + 2u, n - 1u) * eights + k8];
        let w3 = weights[min(4u * row4 + 3u, n - 1u) * eights + k8];
        for (var pair = 0u; pair < 4u; pair++) {
            words[b][4u * i + pair] = vec4(w0[pair], w1[pair], w2[pair], w3[pair]);
        }
    }
}

// Column PER_WORD * word + i of block b, given words[b][word]: a weight is block_scale(b) * column + block_offset(b).
fn block_column(b: u32, word: u32, loaded: Word, i: u32) -> vec4<f32> {
    return vec4(unpack2x16float(loaded.x)[i], unpack2x16float(loaded.y)[i],
                unpack2x16float(loaded.z)[i], unpack2x16float(loaded.w)[i]);
}
