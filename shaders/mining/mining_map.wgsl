// The high-resolution feature map of patch info mining, which is never stored: the maps of the four ConvNeXt stages,
// each upsampled (bilinear, corners not aligned) to the first one's size, with channels concatenated; averaged over
// 2 x 2 cells where POOL is 2 (the global view of the HD models).
struct Stage {
    size: vec2<u32>, // height, width
    channels: u32,   // Channels in a texel (`channels_*`)
    ratio: u32,      // cells of the first map per texel of this one
}

override POOL: u32 = 1;

@group(0) @binding(0) var<storage, read> stage0: array<Channels>;
@group(0) @binding(1) var<storage, read> stage1: array<Channels>;
@group(0) @binding(2) var<storage, read> stage2: array<Channels>;
@group(0) @binding(3) var<storage, read> stage3: array<Channels>;

fn texel(stage: u32, i: u32) -> Channels {
    switch stage {
        case 0u: {
            return stage0[i];
        }
        case 1u: {
            return stage1[i];
        }
        case 2u: {
            return stage2[i];
        }
        default: {
            return stage3[i];
        }
    }
}

// Where cell `i` (of the unpooled first map) falls between texels of a map `ratio` times smaller: the lower texel and
// the weight of the upper one.
struct Tap {
    low: u32,
    weight: f32,
}

fn tap(i: u32, ratio: u32) -> Tap {
    let source = max(0.0, (f32(i) + 0.5) / f32(ratio) - 0.5);
    let low = floor(source);
    return Tap(u32(low), source - low);
}

// Weight of texel `t` in the (pooled) cell `i`, along one axis of `size` texels.
fn texel_weight(i: u32, t: u32, ratio: u32, size: u32) -> f32 {
    var weight = 0.0;
    for (var j = 0u; j < POOL; j++) {
        let at = tap(i * POOL + j, ratio);
        if t == at.low {
            weight += 1.0 - at.weight;
        }
        if t == min(at.low + 1u, size - 1u) {
            weight += at.weight;
        }
    }
    return weight / f32(POOL);
}

// What a (pooled) cell takes along one axis: its lowest texel, and the weights of that one and the next two. Cells that
// are averaged are at most a texel apart, so there are no more.
struct Taps {
    low: u32,
    weight: vec3<f32>,
}

fn taps(i: u32, ratio: u32, size: u32) -> Taps {
    let low = tap(i * POOL, ratio).low;
    return Taps(low, vec3(texel_weight(i, low, ratio, size), texel_weight(i, low + 1u, ratio, size),
                          texel_weight(i, low + 2u, ratio, size)));
}
