// Block reader: q8 (see weights_q8.wgsl). 32 weights of each of four neighbouring rows are 128 bytes, their scales 8.
@group(0) @binding(1) var<storage, read> weights: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> scales: array<vec2<u32>>;

var<private> block: array<vec4<f32>, 32>; // [column], component: row

// Columns 32 group .. 32 group + 31 of rows 4 row4 .. 4 row4 + 3; `stride` is the row length in fours.
fn read_block(row4: u32, group: u32, stride: u32, n: u32) {
    let at = row4 * (stride >> 3u) + group;
    let pairs = scales[at];
    let scale = vec4(unpack2x16float(pairs.x), unpack2x16float(pairs.y));
    for (var half = 0u; half < 2u; half++) {
        let w0 = weights[8u * at + half];
        let w1 = weights[8u * at + 2u + half];
        let w2 = weights[8u * at + 4u + half];
        let w3 = weights[8u * at + 6u + half];
        for (var word = 0u; word < 4u; word++) {
            let words = bitcast<vec4<i32>>(vec4(w0[word], w1[word], w2[word], w3[word]));
            for (var i = 0u; i < 4u; i++) {
                block[16u * half + 4u * word + i] = scale * vec4<f32>((words << vec4(24u - 8u * i)) >> vec4(24u));
            }
        }
    }
}
