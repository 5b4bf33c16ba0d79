// For every texel of a stage's map: its mean over the channels, and the products over the channels of itself and its
// neighbours, each less its own mean. mining_stats_bilinear computes the variance of any mixture of the four texels
// from them. With a the texel, b the one to its right, c below, d below and right (the last one again at the border):
//     products [texels] of (aa, ab, ac, ad), (bc, mean of a, 0, 0)
// Where NEIGHBOURS is 0 only aa and the mean are computed: the map has the size of the cells.
// Dispatch: one workgroup per texel, folded over x and y.
struct Params {
    height: u32,
    width: u32,
    channels: u32, // Channels in a texel
}

override NEIGHBOURS: u32 = 1;

@group(0) @binding(0) var<storage, read> map: array<Channels>;
@group(0) @binding(1) var<storage, read_write> products: array<vec4<f32>>;
@group(0) @binding(2) var<uniform> params: Params;

@compute @workgroup_size(WORKGROUP)
fn mining_products(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                   @builtin(local_invocation_index) local: u32) {
    let texel = group.x + group.y * groups.x;
    // The same for the whole workgroup.
    if texel >= params.height * params.width {
        return;
    }
    let right = select(0u, params.channels, texel % params.width + 1u < params.width);
    let below = select(0u, params.width * params.channels, texel / params.width + 1u < params.height);
    let start = texel * params.channels;
    var sums = vec4(0.0);
    for (var i = local; i < params.channels; i += WORKGROUP) {
        let a = start + i;
        sums.x += sum_channels(map[a]);
        if NEIGHBOURS == 1u {
            sums += vec4(0.0, sum_channels(map[a + right]), sum_channels(map[a + below]),
                         sum_channels(map[a + below + right]));
        }
    }
    let means = workgroup_sum4(sums, local) / f32(CHANNELS_PER_INVOCATION * params.channels);
    var first = vec4(0.0);
    var second = 0.0;
    for (var i = local; i < params.channels; i += WORKGROUP) {
        let at = start + i;
        let a = map[at] - means.x;
        first.x += dot_channels(a, a);
        if NEIGHBOURS == 1u {
            let b = map[at + right] - means.y;
            let c = map[at + below] - means.z;
            let d = map[at + below + right] - means.w;
            first += vec4(0.0, dot_channels(a, b), dot_channels(a, c), dot_channels(a, d));
            second += dot_channels(b, c);
        }
    }
    let all = workgroup_sum4(first, local);
    let bc = workgroup_sum(second, local);
    if local == 0u {
        products[2u * texel] = all;
        products[2u * texel + 1u] = vec4(bc, means.x, 0.0, 0.0);
    }
}
