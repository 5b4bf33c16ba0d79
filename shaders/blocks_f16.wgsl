// Block reader: f16 (see weights_f16.wgsl), 32 columns of four neighbouring rows. Rows and columns past the end repeat the
// last ones: what they are multiplied with is zero, or what becomes of them is not stored.
@group(0) @binding(1) var<storage, read> weights: array<vec2<u32>>;

var<private> block: array<vec4<f32>, 32>; // [column], component: row

// Columns 32 group .. 32 group + 31 of rows 4 row4 .. 4 row4 + 3; `stride` is the row length in fours.
fn read_block(row4: u32, group: u32, stride: u32, n: u32) {
    for (var i = 0u; i < 8u; i++) {
        let k4 = min(8u * group + i, stride - 1u);
        let w0 = weights[min(4u * row4, n - 1u) * stride + k4];
        let w1 = weights[min(4u * row4 + 1u, n - 1u) * stride + k4];
        let w2 = weights[min(4u * row4 + 2u, n - 1u) * stride + k4];
        let w3 = weights[min(4u * row4 + 3u, n - 1u) * stride + k4];
        for (var pair = 0u; pair < 2u; pair++) {
            let p0 = unpack2x16float(w0[pair]);
            let p1 = unpack2x16float(w1[pair]);
            let p2 = unpack2x16float(w2[pair]);
            let p3 = unpack2x16float(w3[pair]);
            block[4u * i + 2u * pair] = vec4(p0.x, p1.x, p2.x, p3.x);
            block[4u * i + 2u * pair + 1u] = vec4(p0.y, p1.y, p2.y, p3.y);
        }
    }
}
