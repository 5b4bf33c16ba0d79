//! Operations: one file per family of shaders. An op checks shapes, picks a variant and records its dispatches; it knows
//! no model.

mod attention;
pub mod cases;
mod convolution;
mod convolution2d;
mod denoise;
mod form;
mod gather;
mod group_norm;
mod linear;
mod mining;
mod norm;
pub mod roofline;
mod rotary;
mod routing;
mod sampling;
mod softmax;
mod specialisations;
pub(crate) mod timing;
mod tuning;

pub use attention::{Attention, KeyValues, KvCache, Look, Run, attention, attention_over, attention_to_runs};
pub use convolution::{FeatureMap, concatenate, depthwise, patches, resize};
pub use convolution2d::{Convolution, MapEpilogue, Sampling2d, convolution, convolution_doubled};
pub use denoise::{Denoise, denoise};
pub(crate) use form::Form;
pub use gather::{NO_ROW, gather, gather_add, gather_rows};
pub use group_norm::{ChannelSums, GroupNorm, Rectangle, group_norm, scale_channels};
pub use linear::{Activation, Epilogue, Routes, linear, linear_add, linear_normed, linear_routed};
pub use mining::{MiningMap, check_windows, mining, mining_stats};
pub use norm::{Norm, norm};
pub use rotary::{Rotary, RotaryTable, Turns, linear_turned};
pub use routing::{Routing, combine, route};
pub use sampling::{Sampling, sample};
pub use softmax::softmax;
pub use specialisations::specialisations;
pub(crate) use tuning::uncached_weights;
pub use tuning::{Shape, TuneOptions, Tuning, tune};

use crate::gpu::{Cost, grid_1d};

/// Invocations of the element-wise kernels' workgroups.
const ELEMENTS: usize = 64;

/// The grid for `count` elements, [`ELEMENTS`] a workgroup.
fn element_grid(count: usize) -> [u32; 3] {
    grid_1d(count.div_ceil(ELEMENTS))
}

/// A cost in elements of four bytes read or written.
fn cost(elements: usize, flops: usize) -> Cost {
    Cost { bytes: elements as f64 * 4.0, flops: flops as f64 }
}
