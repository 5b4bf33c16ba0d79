//! Every kernel that can be dispatched, so that tests can compile all of them for every backend.

use super::attention::{AttentionKernel, CooperativeAttention, ScoreForm};
use super::{
    adjust, attention, denoise, feature_map, gather, group_norm, inpaint, logprobs, matmul, mining, norm, paged,
    places, roofline, rope, routing, sampling, softcap, softmax,
};
use crate::gpu::{Kernel, PipelineKey};
use crate::tensor::{Precision, fill_kernel};

const BOTH: [bool; 2] = [false, true];
/// All specialisations of all kernels.
pub fn specialisations() -> Vec<Kernel> {
    let mut kernels = vec![
        fill_kernel(),
        feature_map::patches_kernel(),
        feature_map::resize_kernel(),
        denoise::kernel(),
        inpaint::kernel(),
        places::Variant.kernel(),
        feature_map::concatenate_kernel(),
        softcap::kernel(),
    ];
    kernels.extend(rope::RowsVariant::all().map(|variant| variant.kernel()));
    kernels.extend(roofline::kernels());
    kernels.extend(group_norm::kernels());
    kernels.extend(matmul::all_kernels());
    kernels.extend(matmul::quantize_kernels());
    kernels.extend(attention_kernels());
    kernels.extend(Precision::ALL.map(|precision| gather::Variant(precision).kernel()));
    for first in BOTH {
        kernels.push(softmax::kernel(first));
        for registers in norm::RegisterRows::all().map(Some).chain([None]) {
            for unit_offset in BOTH {
                let variant = |add| norm::Variant { centred: first, unit_offset, add, registers };
                kernels.extend(BOTH.map(|add| variant(add).kernel()));
            }
        }
        kernels.extend(BOTH.map(|whole| feature_map::depthwise_kernel(first, whole)));
        kernels.push(mining::stats_kernel(first));
        for workgroup in mining::PRODUCTS_WORKGROUPS {
            kernels.extend(BOTH.map(|neighbours| mining::products_kernel(first, neighbours, workgroup)));
        }
        kernels.extend(BOTH.map(|by_row| sampling::Variant { draws: first, by_row }.kernel()));
        kernels
            .extend(sampling::SplitKernel::ALL.map(|kernel| sampling::SplitVariant { kernel, by_row: first }.kernel()));
    }
    kernels.extend(adjust::Adjust::ALL.map(|kernel| kernel.kernel()));
    kernels.extend(logprobs::Logprobs::ALL.map(|kernel| kernel.kernel()));
    kernels.push(mining::stats_bilinear_kernel());
    for pool in mining::POOLS {
        for (keep, vec4) in BOTH.into_iter().flat_map(|keep| BOTH.map(|vec4| (keep, vec4))) {
            let windows = 1..=mining::MAX_TEXELS / pool;
            kernels.extend(windows.map(|window| mining::mining_kernel(window, pool, keep, vec4)));
        }
    }
    kernels.push(routing::gated_add_kernel());
    for top_k in 1..=routing::MAX_TOP_K {
        kernels.extend(BOTH.map(|normalised| routing::route_kernel(top_k, normalised)));
        kernels.push(routing::combine_kernel(top_k));
    }
    kernels
}

fn attention_kernels() -> Vec<Kernel> {
    let mut kernels = Vec::new();
    for head_dim in (4..=attention::MAX_HEAD_DIM).step_by(4) {
        kernels.push(attention::Combine { head_dim }.kernel());
        kernels.push(paged::PagedCombine(attention::Combine { head_dim }).kernel());
        let kernels_and_least_rows = [
            (AttentionKernel::Tiled, 8),
            (AttentionKernel::Decode, 1),
            (AttentionKernel::Workgroup, 1),
            (AttentionKernel::Subgroup, 1),
        ];
        for (kernel, least) in kernels_and_least_rows {
            // Workgroup memory decides between 8 and 16 rows.
            let most = kernel.max_rows(head_dim, u32::MAX);
            for rows in [1, 2, 4, 8, 16].into_iter().filter(|rows| (least..=most).contains(rows)) {
                for bits in 0..8u32 {
                    let [causal, split, half] = [0, 1, 2].map(|index| bits >> index & 1 == 1);
                    let is_paged = match kernel {
                        AttentionKernel::Tiled => !split,
                        AttentionKernel::Decode => split,
                        _ => true,
                    };
                    for scores in score_forms(kernel, head_dim, causal) {
                        let variant = attention::Variant { head_dim, rows, causal, split, half, scores, kernel };
                        kernels.push(variant.kernel());
                        if causal && is_paged {
                            kernels.push(paged::PagedVariant(variant).kernel());
                        }
                    }
                }
            }
        }
        for [causal, half] in [[false, false], [false, true], [true, false], [true, true]] {
            let (kernel, scores) = (AttentionKernel::Subgroup4, ScoreForm::default());
            let variant = attention::Variant { head_dim, rows: 64, causal, split: false, half, scores, kernel };
            kernels.push(variant.kernel());
        }
        for (size, lanes) in attention::COOPERATIVE_LANES.into_iter().filter(|_| head_dim.is_multiple_of(8)) {
            let kernel = AttentionKernel::Cooperative(CooperativeAttention::new(head_dim, size, lanes));
            for bits in 0..8u32 {
                let [causal, split, half] = [0, 1, 2].map(|index| bits >> index & 1 == 1);
                let scores = ScoreForm::default();
                kernels.push(attention::Variant { head_dim, rows: 0, causal, split, half, scores, kernel }.kernel());
            }
        }
    }
    kernels
}

/// Heads of which kernels with caps and windows are compiled: those of released models, and of tests. Others differ
/// only in the constants that all kernels of attention have.
const SCORED_HEAD_DIMS: [usize; 6] = [16, 24, 64, 96, 128, 256];

/// The steps of scores that a kernel may have.
fn score_forms(kernel: AttentionKernel, head_dim: usize, causal: bool) -> Vec<ScoreForm> {
    let form = |capped, windowed| ScoreForm { capped, windowed };
    match kernel {
        AttentionKernel::Workgroup | AttentionKernel::Decode | AttentionKernel::Tiled
            if causal && SCORED_HEAD_DIMS.contains(&head_dim) =>
        {
            vec![form(false, false), form(true, false), form(false, true), form(true, true)]
        }
        _ => vec![form(false, false)],
    }
}
