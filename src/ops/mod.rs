//! Operations: one file per family of shaders. An op checks shapes, picks a variant and records its dispatches; it
//! knows no model.

mod adjust;
mod attention;
pub mod cases;
mod checked;
mod convolution;
mod denoise;
mod feature_map;
mod gather;
mod group_norm;
mod inpaint;
mod kernel_name;
mod logprobs;
mod matmul;
mod mining;
mod norm;
mod paged;
mod places;
pub mod roofline;
mod rope;
mod routing;
mod sampling;
mod softcap;
mod softmax;
mod specialisations;

pub use adjust::{FORBID, RowBias, RowPenalties, adjust, count_sampled, token_counts};
pub(crate) use attention::CooperativeAttention;
pub use attention::{
    Attention, AttentionSegment, KeyValues, KvCache, StridedRows, attention, attention_batched, attention_segments,
};
pub(crate) use checked::Checked;
pub use convolution::{ConvEpilogue, ConvMode, Convolution, convolution, convolution_upsampled};
pub use denoise::{Denoise, denoise};
pub use feature_map::{FeatureMap, concatenate, depthwise, patches, resize};
pub use gather::{NO_ROW, gather, gather_add, gather_rows};
pub use group_norm::{ChannelMoments, GroupNorm, Rectangle, group_norm, scale_channels};
pub use inpaint::{Inpaint, inpaint};
pub use kernel_name::kernel_name;
pub use logprobs::{MAX_TOP_LOGPROBS, logprob_words, logprobs};
pub(crate) use matmul::{Choice, linear_by, update_tuning};
pub use matmul::{
    Cooperative, Epilogue, FewRows, MatmulKernel, MatmulShape, Rounding, Routes, RowMatvec, SharedRows, Tuning, linear,
    linear_add, linear_normed, linear_routed, products, set_tuning, tuning,
};
pub use mining::{MiningMap, check_windows, mining, mining_stats};
pub use norm::{Norm, norm, norm_add};
pub use paged::{BLOCK_ROWS, BlockTables, PagedForm, PagedSequence, attention_paged};
pub use places::{Place, Places};
pub use rope::{PlacedRows, QkvRope, QueryKeyNorm, RopeRows, RopeTable, linear_qkv_rope, rope_rows};
pub use routing::{Routing, Shares, combine, gated_add, route};
pub use sampling::{RowSampling, Sampling, sample, sample_rows};
pub use softcap::softcap;
pub use softmax::softmax;
pub use specialisations::specialisations;

pub use crate::tensor::{Activation, QueryFactor, Rope, Scores};

use crate::gpu::{Cost, grid_1d};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// Invocations of the element-wise kernels' workgroups.
const ELEMENTS: usize = 64;

/// The grid for `count` elements, [`ELEMENTS`] a workgroup.
fn element_grid(count: usize) -> [u32; 3] {
    grid_1d(count.div_ceil(ELEMENTS))
}

/// Checks the number of elements of an op's tensors: (what it is, the tensor, the expected number).
fn check_lengths<const N: usize>(tensors: [(&str, &Tensor, usize); N]) -> Result<()> {
    tensors.into_iter().find(|(_, tensor, expected)| tensor.len() != *expected).map_or(
        Ok(()),
        |(what, tensor, expected)| {
            Err(Error::WrongShape {
                name: what.to_owned(),
                found: tensor.shape().to_vec(),
                expected: format!("{expected} elements"),
            })
        },
    )
}

/// A cost in elements of four bytes read or written.
fn cost(elements: usize, flops: usize) -> Cost {
    Cost { bytes: elements as f64 * 4.0, flops: flops as f64 }
}
