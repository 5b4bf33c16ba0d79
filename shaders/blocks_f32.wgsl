// Block reader: f32 (see weights_f32.wgsl), 32 columns of four neighbouring rows. Rows and columns past the end repeat the
// last ones: what they are multiplied with is zero, or what becomes of them is not stored.
@group(0) @binding(1) var<storage, read> weights: array<vec4<f32>>;

var<private> block: array<vec4<f32>, 32>; // [column], component: row

// Columns 32 group .. 32 group + 31 of rows 4 row4 .. 4 row4 + 3; `stride` is the row length in fours.
fn read_block(row4: u32, group: u32, stride: u32, n: u32) {
    for (var i = 0u; i < 8u; i++) {
        let k4 = min(8u * group + i, stride - 1u);
        let w0 = weights[min(4u * row4, n - 1u) * stride + k4];
        let w1 = weights[min(4u * row4 + 1u, n - 1u) * stride + k4];
        let w2 = weights[min(4u * row4 + 2u, n - 1u) * stride + k4];
        let w3 = weights[min(4u * row4 + 3u, n - 1u) * stride + k4];
        for (var c = 0u; c < 4u; c++) {
            block[4u * i + c] = vec4(w0[c], w1[c], w2[c], w3[c]);
        }
    }
}
