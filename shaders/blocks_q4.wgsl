// Block reader: q4 (see weights_q4.wgsl). 32 weights of each of four neighbouring rows are 64 bytes, their scales 16.
@group(0) @binding(1) var<storage, read> weights: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> scales: array<vec4<u32>>;

var<private> block: array<vec4<f32>, 32>; // [column], component: row

// Columns 32 group .. 32 group + 31 of rows 4 row4 .. 4 row4 + 3; `stride` is the row length in fours.
fn read_block(row4: u32, group: u32, stride: u32, n: u32) {
    let at = row4 * (stride >> 3u) + group;
    let w0 = weights[4u * at];
    let w1 = weights[4u * at + 1u];
    let w2 = weights[4u * at + 2u];
    let w3 = weights[4u * at + 3u];
    let pairs = scales[at];
    let s0 = unpack2x16float(pairs.x);
    let s1 = unpack2x16float(pairs.y);
    let s2 = unpack2x16float(pairs.z);
    let s3 = unpack2x16float(pairs.w);
    let scale = vec4(s0.x, s1.x, s2.x, s3.x);
    let minimum = vec4(s0.y, s1.y, s2.y, s3.y);
    for (var word = 0u; word < 4u; word++) {
        let words = vec4(w0[word], w1[word], w2[word], w3[word]);
        for (var i = 0u; i < 8u; i++) {
            let q = vec4<f32>(vec4<i32>((words >> vec4(4u * i)) & vec4(15u)));
            block[8u * word + i] = fma(scale, q, minimum);
        }
    }
}
