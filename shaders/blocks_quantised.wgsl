// Block reader: integers of BITS bits, 4 to 6 (see weights_quantised.wgsl). 32 weights of each of four neighbouring rows are
// 64 bytes, and a word beside each of them 16.
@group(0) @binding(1) var<storage, read> weights: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> scales: array<vec4<u32>>;

const HIGH_WORDS: u32 = BITS - 4u;
const WORDS: u32 = HIGH_WORDS + 1u + WIDE;

var<private> block: array<vec4<f32>, 32>; // [column], component: row

// Columns 32 group .. 32 group + 31 of rows 4 row4 .. 4 row4 + 3; `stride` is the row length in fours.
fn read_block(row4: u32, group: u32, stride: u32, n: u32) {
    let at = row4 * (stride >> 3u) + group;
    let w0 = weights[4u * at];
    let w1 = weights[4u * at + 1u];
    let w2 = weights[4u * at + 2u];
    let w3 = weights[4u * at + 3u];
    // Scale and minimum of each row, or the scales of the halves.
    var first: vec4<f32>;
    var second: vec4<f32>;
    if WIDE == 1u {
        first = bitcast<vec4<f32>>(scales[WORDS * at + HIGH_WORDS]);
        second = bitcast<vec4<f32>>(scales[WORDS * at + WORDS - 1u]);
    } else {
        let pairs = scales[WORDS * at + HIGH_WORDS];
        let s0 = unpack2x16float(pairs.x);
        let s1 = unpack2x16float(pairs.y);
        let s2 = unpack2x16float(pairs.z);
        let s3 = unpack2x16float(pairs.w);
        first = vec4(s0.x, s1.x, s2.x, s3.x);
        second = vec4(s0.y, s1.y, s2.y, s3.y);
    }
    for (var word = 0u; word < 4u; word++) {
        let words = vec4(w0[word], w1[word], w2[word], w3[word]);
        var high = vec4(0u);
        if BITS == 5u {
            high = scales[WORDS * at] >> vec4(8u * word);
        }
        if BITS == 6u {
            high = scales[WORDS * at + (word >> 1u)] >> vec4(16u * (word & 1u));
        }
        for (var i = 0u; i < 8u; i++) {
            var q = (words >> vec4(4u * i)) & vec4(15u);
            if BITS == 5u {
                q |= ((high >> vec4(i)) & vec4(1u)) << vec4(4u);
            }
            if BITS == 6u {
                q |= ((high >> vec4(2u * i)) & vec4(3u)) << vec4(4u);
            }
            // Small numbers: the conversion of signed ones is the cheaper one.
            let value = vec4<f32>(vec4<i32>(q));
            if BITS == 6u {
                block[8u * word + i] = select(first, second, word >= 2u) * (value - vec4(32.0));
            } else {
                block[8u * word + i] = fma(first, value, second);
            }
        }
    }
}
