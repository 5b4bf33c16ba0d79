// Mean and 1 / standard deviation over the channels of every cell of the unpooled map, from the output of
// mining_products. In each stage a cell interpolates four neighbouring texels t with weights w. So its mean there is
// m = sum w m_t, the sum of squared deviations from it is w^T P w with the texels' products P, and with n channels in a
// stage
//     mean = sum n m / sum n;  variance = sum (w^T P w + n (m - mean)^2) / sum n.
// All terms are sums of squares: no digits cancel.
//     stats [cells] of (mean, 1 / sqrt(variance + eps)), cells row-major.
// Dispatch: one invocation per cell, 64 per workgroup, folded over x and y.
struct Stage {
    size: vec2<u32>, // height, width
    channels: u32,
    ratio: u32,      // cells for each texel
}

struct Params {
    stages: array<Stage, 4>,
    height: u32, // cells
    width: u32,
    channels: u32, // of all stages
    eps: f32,
}

@group(0) @binding(0) var<storage, read> products0: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> products1: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> products2: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> products3: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> stats: array<vec2<f32>>;
@group(0) @binding(5) var<uniform> params: Params;

fn product(stage: u32, i: u32) -> vec4<f32> {
    switch stage {
        case 0u: {
            return products0[i];
        }
        case 1u: {
            return products1[i];
        }
        case 2u: {
            return products2[i];
        }
        default: {
            return products3[i];
        }
    }
}

// Mean, and squares of what deviates from it, of a stage in a cell.
fn interpolated(stage: u32, y: u32, x: u32) -> vec2<f32> {
    let map = params.stages[stage];
    if map.ratio == 1u {
        let texel = 2u * (y * map.size.y + x);
        return vec2(product(stage, texel + 1u).y, product(stage, texel).x);
    }
    let source = max(vec2(0.0), (vec2(f32(y), f32(x)) + 0.5) / f32(map.ratio) - 0.5);
    let low = vec2<u32>(floor(source));
    let high = min(low + 1u, map.size - 1u);
    let part = source - floor(source);
    let w = vec4((1.0 - part.x) * (1.0 - part.y), (1.0 - part.x) * part.y, part.x * (1.0 - part.y), part.x * part.y);
    let a = 2u * (low.x * map.size.y + low.y);
    let b = 2u * (low.x * map.size.y + high.y);
    let c = 2u * (high.x * map.size.y + low.y);
    let d = 2u * (high.x * map.size.y + high.y);
    let pa = product(stage, a);      // aa, ab, ac, ad
    let qa = product(stage, a + 1u); // bc, mean
    let pb = product(stage, b);
    let pc = product(stage, c);
    let means = vec4(qa.y, product(stage, b + 1u).y, product(stage, c + 1u).y, product(stage, d + 1u).y);
    let own = vec4(pa.x, pb.x, pc.x, product(stage, d).x);
    let pairs = w.x * (w.y * pa.y + w.z * pa.z + w.w * pa.w) + w.y * (w.z * qa.x + w.w * pb.z) + w.z * w.w * pc.y;
    return vec2(dot(w, means), dot(w * w, own) + 2.0 * pairs);
}

@compute @workgroup_size(64)
fn mining_stats_bilinear(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                @builtin(local_invocation_index) local: u32) {
    let cell = (group.x + group.y * groups.x) * 64u + local;
    if cell >= params.height * params.width {
        return;
    }
    var means = vec4(0.0);
    var squares = 0.0;
    var mean = 0.0;
    for (var stage = 0u; stage < 4u; stage++) {
        let found = interpolated(stage, cell / params.width, cell % params.width);
        means[stage] = found.x;
        squares += found.y;
        mean += f32(params.stages[stage].channels) * found.x;
    }
    mean /= f32(params.channels);
    for (var stage = 0u; stage < 4u; stage++) {
        let d = means[stage] - mean;
        squares += f32(params.stages[stage].channels) * d * d;
    }
    stats[cell] = vec2(mean, inverseSqrt(squares / f32(params.channels) + params.eps));
}
