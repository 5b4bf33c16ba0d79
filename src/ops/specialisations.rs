//! Every kernel that can be dispatched, so that all of them can be compiled for backends that are not at hand.

use super::form::Form;
use super::linear::{Activation, Applied, Ending, Input, Variant};
use super::{attention, convolution, denoise, gather, group_norm, mining, norm, roofline, routing, sampling, softmax};
use crate::gpu::{Kernel, Specialise};
use crate::tensor::{Precision, fill_kernel};

const BOTH: [bool; 2] = [false, true];
/// All specialisations of all kernels.
pub fn specialisations() -> Vec<Kernel> {
    let mut kernels = vec![
        fill_kernel(),
        convolution::patches_kernel(),
        convolution::resize_kernel(),
        denoise::kernel(),
        convolution::concatenate_kernel(),
        softmax::kernel(),
    ];
    kernels.extend(roofline::kernels());
    kernels.extend(group_norm::kernels());
    kernels.extend(product_kernels());
    kernels.extend(attention_kernels());
    kernels.extend(Precision::ALL.map(|precision| gather::Variant(precision).kernel()));
    for first in BOTH {
        for held in norm::Held::all().map(Some).chain([None]) {
            kernels.extend(BOTH.map(|unit_offset| norm::Variant { centred: first, unit_offset, held }.kernel()));
        }
        kernels.push(convolution::depthwise_kernel(first));
        kernels.push(mining::stats_kernel(first));
        for workgroup in mining::PRODUCTS_WORKGROUPS {
            kernels.extend(BOTH.map(|neighbours| mining::products_kernel(first, neighbours, workgroup)));
        }
        kernels.push(sampling::Variant { draws: first }.kernel());
    }
    kernels.push(mining::mixed_kernel());
    for pool in mining::POOLS {
        for (keep, vec4) in BOTH.into_iter().flat_map(|keep| BOTH.map(|vec4| (keep, vec4))) {
            let windows = 1..=mining::MAX_TEXELS / pool;
            kernels.extend(windows.map(|window| mining::mining_kernel(window, pool, keep, vec4)));
        }
    }
    for top_k in 1..=routing::MAX_EXPERTS {
        kernels.extend([routing::route_kernel(top_k), routing::combine_kernel(top_k)]);
    }
    kernels
}

/// Every kernel that computes a matrix product.
pub(super) fn product_kernels() -> Vec<Kernel> {
    let mut kernels = Vec::new();
    // All of the epilogue: less of it leaves code out and adds none.
    let applied = Applied {
        bias: true,
        gamma: true,
        gated: true,
        accumulate: true,
        residual: true,
        activation: Activation::GeluErf,
    };
    for form in Form::all() {
        for precision in Precision::ALL.into_iter().filter(|precision| form.takes(*precision)) {
            for ending in [Ending::Plain, Ending::Routed, Ending::Turned { half: false }, Ending::Turned { half: true }]
            {
                for (input, norm) in [Input::Scalar, Input::Vec4].into_iter().flat_map(|a| BOTH.map(|b| (a, b))) {
                    // No expert has a norm of its own.
                    if !norm || (ending != Ending::Routed && form.fuses_norm()) {
                        for unit_offset in BOTH.into_iter().filter(|unit_offset| norm || !unit_offset) {
                            let variant = Variant { form, precision, input, ending, norm, unit_offset, applied };
                            kernels.push(variant.kernel());
                        }
                    }
                }
            }
            // Convolutions go through no form that takes rows one by one.
            if form.takes_many() {
                let (input, ending) = (Input::Map, Ending::Plain);
                let variant = Variant { form, precision, input, ending, norm: false, unit_offset: false, applied };
                kernels.push(variant.kernel());
            }
        }
    }
    kernels
}

fn attention_kernels() -> Vec<Kernel> {
    let mut kernels = Vec::new();
    for head_dim in (4..=attention::MAX_HEAD_DIM).step_by(4) {
        kernels.push(attention::Merge { head_dim }.kernel());
        for form in [attention::Form::Workgroup, attention::Form::Subgroup] {
            let most = attention::Variant::max_rows(head_dim, form);
            for rows in [1, 2, 4, 8, 16].into_iter().filter(|rows| *rows <= most) {
                for bits in 0..8u32 {
                    let [causal, split, half] = [0, 1, 2].map(|index| bits >> index & 1 == 1);
                    let variant = attention::Variant { head_dim, rows, causal, split, half, form };
                    kernels.push(variant.kernel());
                }
            }
        }
        for [causal, half] in [[false, false], [false, true], [true, false], [true, true]] {
            let form = attention::Form::Subgroup4;
            kernels.push(attention::Variant { head_dim, rows: 64, causal, split: false, half, form }.kernel());
        }
    }
    kernels
}
