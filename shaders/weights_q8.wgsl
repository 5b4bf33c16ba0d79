// Weight reader: q8. Groups of 32 along the row: weight = scale * q, q signed 8 bit, four in a u32; scale f16, two in a
// u32. `stride` is the row length in fours, a multiple of 8.
@group(0) @binding(1) var<storage, read> weights: array<u32>;
@group(0) @binding(2) var<storage, read> scales: array<u32>;

fn weight4(row: u32, k4: u32, stride: u32) -> vec4<f32> {
    let at = row * stride + k4;
    let word = bitcast<i32>(weights[at]);
    let group = at >> 3u;
    let pair = unpack2x16float(scales[group >> 1u]);
    let scale = select(pair.x, pair.y, (group & 1u) == 1u);
    return scale * vec4<f32>(vec4<i32>((word << 24u) >> 24u, (word << 16u) >> 24u, (word << 8u) >> 24u, word >> 24u));
}
